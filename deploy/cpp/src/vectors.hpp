// Marks functions that gain from AVX2. They are compiled twice, with and without AVX2, and one
// version is selected when the library is loaded. The results are equal to the last bit.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SEGDEPLOY_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define SEGDEPLOY_VECTORS
#endif
