// Loops that gain from wider vectors than every processor has: compiled for AVX2, too, and chosen when
// the library is loaded. The arithmetic stays the same to the last bit.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SEGDEPLOY_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define SEGDEPLOY_VECTORS
#endif
