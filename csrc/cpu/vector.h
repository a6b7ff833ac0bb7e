// Vectors of floats in the compiler's own vector types, so that one source serves every instruction set. A tile is four
// vectors: wide enough to hide latencies and to share the branches of a row among many elements.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__F16C__) || defined(__AVX512F__)
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
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));

constexpr int kUnroll = 4;
constexpr int kTile = kUnroll * kLanes;

struct Tile {
    Floats v[kUnroll];
};

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

FASTDIFF_INLINE Floats splat(float value) { return value - Floats{}; }
FASTDIFF_INLINE Ints bits(Floats v) { return reinterpret_cast<Ints>(v); }
FASTDIFF_INLINE Floats floats(Ints v) { return reinterpret_cast<Floats>(v); }
FASTDIFF_INLINE Floats select(Ints mask, Floats yes, Floats no) {
    return floats((mask & bits(yes)) | (~mask & bits(no)));
}
FASTDIFF_INLINE Ints select(Ints mask, Ints yes, Ints no) { return (mask & yes) | (~mask & no); }

template <class To, class From>
FASTDIFF_INLINE To load_as(const From* p) {
    To v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

// --- 16-bit floats ---

FASTDIFF_INLINE Floats widen(Shorts h, Bfloat) { return floats(__builtin_convertvector(h, Ints) << 16); }

FASTDIFF_INLINE Shorts narrow(Floats v, Bfloat) {
    const Ints b = bits(v);
    const Ints rounded = b + 0x7fff + ((b >> 16) & 1);  // to nearest, ties to even
    const Ints is_nan = (b & 0x7fffffff) > 0x7f800000;
    return __builtin_convertvector(select(is_nan, Ints{} + 0x7fc0, (rounded >> 16) & 0xffff), Shorts);
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
    const Ints b = __builtin_convertvector(h, Ints);
    const Ints magnitude = (b & 0x7fff) << 13;
    const Floats finite = floats(magnitude) * 0x1p112f;  // moves the exponent's bias; exact for subnormals too
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
    return __builtin_convertvector(h | ((b >> 16) & 0x8000), Shorts);
}
#endif

// --- loads and stores of a tile, whole or its first `count` elements ---

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

template <bool whole, class T>
FASTDIFF_INLINE Tile load_tile(const T* p, int64_t count) {
    Tile tile;
    if constexpr (whole) {
        for (int j = 0; j < kUnroll; ++j) tile.v[j] = load(p + j * kLanes);
    } else {
        T padded[kTile] = {};
        std::memcpy(padded, p, count * sizeof(T));
        for (int j = 0; j < kUnroll; ++j) tile.v[j] = load(padded + j * kLanes);
    }
    return tile;
}

template <bool whole, class T>
FASTDIFF_INLINE void store_tile(T* p, const Tile& tile, int64_t count) {
    if constexpr (whole) {
        for (int j = 0; j < kUnroll; ++j) store(p + j * kLanes, tile.v[j]);
    } else {
        T padded[kTile];
        for (int j = 0; j < kUnroll; ++j) store(padded + j * kLanes, tile.v[j]);
        std::memcpy(p, padded, count * sizeof(T));
    }
}

template <bool constant>
struct Constant {
    static constexpr bool value = constant;
};

// Calls body(whole_constant, offset, count) over [begin, end) tile by tile; only the last tile can be partial.
template <class Body>
FASTDIFF_INLINE void for_tiles(int64_t begin, int64_t end, const Body& body) {
    int64_t i = begin;
    for (; i + kTile <= end; i += kTile) body(Constant<true>{}, i, int64_t{kTile});
    if (i < end) body(Constant<false>{}, i, end - i);
}

FASTDIFF_INLINE float sum(Floats v) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
}

// --- silu ---

// exp(v) to about 1 ulp; infinity above 88.4, 0 to 1e-38 below -87.3, NaN for NaN.
FASTDIFF_INLINE Floats exp(Floats v) {
    v = select(v > splat(89.0f), splat(89.0f), v);
    v = select(v < splat(-87.3f), splat(-87.3f), v);
    const Floats magic = splat(12582912.0f);  // 1.5*2^23: adding it rounds to an integer
    const Floats shifted = v * 1.44269504f + magic;
    const Floats whole = shifted - magic;
    Floats r = v - whole * 0.693145752f;  // ln 2 in two parts
    r = r - whole * 1.42860677e-6f;
    Floats poly = r * 1.3981999e-3f + 8.3334519e-3f;
    poly = poly * r + 4.1665955e-2f;
    poly = poly * r + 1.6666657e-1f;
    poly = poly * r + 0.5f;
    poly = poly * r + 1.0f;
    poly = poly * r + 1.0f;
    return poly * floats((bits(shifted) - bits(magic) + 127) << 23);
}

FASTDIFF_INLINE Floats silu(Floats z) { return z / (1.0f + exp(-z)); }

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
