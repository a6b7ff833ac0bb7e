// Vectors of floats in the compiler's own vector types, so that one source serves every instruction set. A
// tile is up to four vectors: enough to hide latencies and to share the branches of a row among many
// elements.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__AVX2__)
    #include <immintrin.h>
#endif

#define FASTDIFF_INLINE inline __attribute__((always_inline))
#define FASTDIFF_INLINE_LAMBDA __attribute__((always_inline))

namespace fastdiff {
namespace FASTDIFF_LEVEL {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));

// A piece of a row that is handled at once: four vectors, one vector, or (whole: false) less than one.
template <int vectors, bool is_whole>
struct Piece {
    static constexpr int unroll = vectors;
    static constexpr bool whole = is_whole;
};
constexpr int kUnroll = 4;
constexpr int kTile = kUnroll * kLanes;

template <int unroll>
struct Tile {
    Floats v[unroll];
};

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};
template <class T>
constexpr bool kBfloat = false;
template <>
constexpr bool kBfloat<Bfloat> = true;

FASTDIFF_INLINE Floats splat(float value) { return value - Floats{}; }
FASTDIFF_INLINE Ints bits(Floats v) { return reinterpret_cast<Ints>(v); }
FASTDIFF_INLINE Floats floats(Ints v) { return reinterpret_cast<Floats>(v); }
FASTDIFF_INLINE Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
FASTDIFF_INLINE Ints select(Ints mask, Ints yes, Ints no) { return mask ? yes : no; }

template <class To, class From>
FASTDIFF_INLINE To load_as(const From* p) {
    To v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

// --- 16-bit floats ---

#if defined(__AVX512F__)
FASTDIFF_INLINE Words extend(Shorts h) {
    return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)));
}
FASTDIFF_INLINE Shorts truncate(Words w) {
    return reinterpret_cast<Shorts>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(w)));
}
#elif defined(__AVX2__)
FASTDIFF_INLINE Words extend(Shorts h) {
    return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
}
FASTDIFF_INLINE Shorts truncate(Words w) {  // w < 2^16
    const __m256i v = reinterpret_cast<__m256i>(w);
    return reinterpret_cast<Shorts>(
        _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
#else
FASTDIFF_INLINE Words extend(Shorts h) { return __builtin_convertvector(h, Words); }
FASTDIFF_INLINE Shorts truncate(Words w) { return __builtin_convertvector(w, Shorts); }
#endif

FASTDIFF_INLINE Floats widen(Shorts h, Bfloat) { return reinterpret_cast<Floats>(extend(h) << 16); }

FASTDIFF_INLINE Shorts narrow(Floats v, Bfloat) {
    const Words b = reinterpret_cast<Words>(v);
    const Words rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;  // to nearest, ties to even
    const Ints kept = v == v ? reinterpret_cast<Ints>(rounded) : Ints{} + 0x7fc0;
    return truncate(reinterpret_cast<Words>(kept));
}

#if defined(__AVX512F__)
FASTDIFF_INLINE Floats widen(Shorts h, Half) {
    return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h)));
}
FASTDIFF_INLINE Shorts narrow(Floats v, Half) {
    return reinterpret_cast<Shorts>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
FASTDIFF_INLINE Floats widen(Shorts h, Half) {
    return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
}
FASTDIFF_INLINE Shorts narrow(Floats v, Half) {
    return reinterpret_cast<Shorts>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
FASTDIFF_INLINE Floats widen(Shorts h, Half) {
    const Ints b = reinterpret_cast<Ints>(extend(h));
    const Ints magnitude = (b & 0x7fff) << 13;
    const Floats finite =
        floats(magnitude) * 0x1p112f;  // moves the exponent's bias; exact for subnormals too
    const Ints special = magnitude >= (0x7c00 << 13);
    return floats(select(special, magnitude | 0x7f800000, bits(finite)) | ((b & 0x8000) << 16));
}
FASTDIFF_INLINE Shorts narrow(Floats v, Half) {
    const Ints b = bits(v);
    const Ints magnitude = b & 0x7fffffff;
    // Normal results: rebias and round to nearest even. Subnormal ones: let the adder align and round.
    const Ints normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Ints subnormal = bits(floats(magnitude) + splat(0.5f)) - 0x3f000000;
    const Ints finite = select(magnitude < (113 << 23), subnormal, normal);
    const Ints infinite = magnitude >= 0x477ff000;  // 65520 and above round to infinity
    const Ints nan = magnitude > 0x7f800000;
    const Ints h = select(nan, Ints{} + 0x7e00, select(infinite, Ints{} + 0x7c00, finite));
    return truncate(reinterpret_cast<Words>(h | ((b >> 16) & 0x8000)));
}
#endif

// --- loads and stores of a piece ---

FASTDIFF_INLINE Floats load(const float* p) { return load_as<Floats>(p); }
template <class T>
FASTDIFF_INLINE Floats load(const T* p) {
    return widen(load_as<Shorts>(p), T{});
}
FASTDIFF_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }
template <class T>
FASTDIFF_INLINE void store(T* p, Floats v) {
    const Shorts h = narrow(v, T{});
    std::memcpy(p, &h, sizeof(h));
}

// The first `count` elements of a vector; the others load as 0 and are not stored.
#if defined(__AVX512F__)
FASTDIFF_INLINE uint16_t first(int64_t count) { return static_cast<uint16_t>((1u << count) - 1); }
FASTDIFF_INLINE Floats load_part(const float* p, int64_t count) {
    return reinterpret_cast<Floats>(_mm512_maskz_loadu_ps(first(count), p));
}
template <class T>
FASTDIFF_INLINE Floats load_part(const T* p, int64_t count) {
    return widen(reinterpret_cast<Shorts>(_mm256_maskz_loadu_epi16(first(count), p)), T{});
}
FASTDIFF_INLINE void store_part(float* p, Floats v, int64_t count) {
    _mm512_mask_storeu_ps(p, first(count), reinterpret_cast<__m512>(v));
}
template <class T>
FASTDIFF_INLINE void store_part(T* p, Floats v, int64_t count) {
    _mm256_mask_storeu_epi16(p, first(count), reinterpret_cast<__m256i>(narrow(v, T{})));
}
#else
template <class T>
FASTDIFF_INLINE Floats load_part(const T* p, int64_t count) {
    T padded[kLanes] = {};
    std::memcpy(padded, p, count * sizeof(T));
    return load(padded);
}
template <class T>
FASTDIFF_INLINE void store_part(T* p, Floats v, int64_t count) {
    T padded[kLanes];
    store(padded, v);
    std::memcpy(p, padded, count * sizeof(T));
}
#endif

template <class P, class T>
FASTDIFF_INLINE Tile<P::unroll> load_tile(const T* p, int64_t count) {
    Tile<P::unroll> tile;
    if constexpr (P::whole) {
        for (int j = 0; j < P::unroll; ++j) tile.v[j] = load(p + j * kLanes);
    } else {
        tile.v[0] = load_part(p, count);
    }
    return tile;
}

template <class P, class T>
FASTDIFF_INLINE void store_tile(T* p, const Tile<P::unroll>& tile, int64_t count) {
    if constexpr (P::whole) {
        for (int j = 0; j < P::unroll; ++j) store(p + j * kLanes, tile.v[j]);
    } else {
        store_part(p, tile.v[0], count);
    }
}

// Calls body(piece, offset, count) over [begin, end): tiles, then single vectors, then what is left of one.
template <class Body>
FASTDIFF_INLINE void for_pieces(int64_t begin, int64_t end, const Body& body) {
    int64_t i = begin;
    for (; i + kTile <= end; i += kTile) body(Piece<kUnroll, true>{}, i, int64_t{kTile});
    for (; i + kLanes <= end; i += kLanes) body(Piece<1, true>{}, i, int64_t{kLanes});
    if (i < end) body(Piece<1, false>{}, i, end - i);
}

FASTDIFF_INLINE float sum(Floats v) {
    float lanes[kLanes];
    std::memcpy(lanes, &v, sizeof(v));
    for (int half = kLanes / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// 2^t to about 1 ulp: infinity from 128 on, 0 below -126 or so, NaN for NaN.
FASTDIFF_INLINE Floats exp2(Floats t) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    const Floats whole = reinterpret_cast<Floats>(_mm512_roundscale_ps(reinterpret_cast<__m512>(t), 0));
    const Floats r = reinterpret_cast<Floats>(_mm512_reduce_ps(reinterpret_cast<__m512>(t), 0));
#else
    t = select(t > splat(128.0f), splat(128.0f), t);
    t = select(t < splat(-126.0f), splat(-126.0f), t);
    const Floats magic = splat(12582912.0f);  // 1.5*2^23: adding it rounds to an integer
    const Floats shifted = t + magic;
    const Floats r = t - (shifted - magic);
#endif
    Floats p = r * 1.33908634e-3f + 9.67603192e-3f;  // Chebyshev fit on [-1/2, 1/2], relative error 8e-8
    p = p * r + 5.55035711e-2f;
    p = p * r + 2.40221075e-1f;
    p = p * r + 6.93147188e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    return reinterpret_cast<Floats>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
    return p * floats((bits(shifted) - bits(magic) + 127) << 23);
#endif
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
