// Fused multiply-adds where the result's bits matter, and so cannot be left to the compiler.
#pragma once

#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// a*b + c, rounded once. Slow at the generic level, where it is a call for each element.
FASTDIFF_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_fmadd_ps(
        reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<Floats>(_mm256_fmadd_ps(
        reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
    Floats total;
    for (int i = 0; i < kLanes; ++i) total[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return total;
#endif
}

// a*b + c*d, the same bits wherever it stands in a level: one product rounded, then fused where that is fast.
FASTDIFF_INLINE Floats weighted(Floats a, Floats b, Floats c, Floats d) {
#if defined(__AVX512F__) || defined(__FMA__)
    return fused(a, b, c * d);
#else
    return a * b + c * d;
#endif
}

FASTDIFF_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
    return reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
    Floats root;
    for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(v[i]);
    return root;
#endif
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
