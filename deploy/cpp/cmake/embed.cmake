# Write a file's bytes as a C++ array:
#     cmake -DFROM=k.fatbin -DTO=k.cpp -DNAME=kernels -P embed.cmake
file(READ ${FROM} digits HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${digits}")
file(WRITE ${TO} "extern const unsigned char ${NAME}[];\nalignas(8) const unsigned char ${NAME}[] = {${bytes}};\n")
