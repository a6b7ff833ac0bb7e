// torch.randn on the CPU, bit for bit: mt19937 (Matsumoto and Nishimura, 1998), whose words become normal
// values sixteen at a time by Box-Muller, with the Cephes logarithm, sine and cosine of
// ATen/native/cpu/avx_mathfun.h. ATen's compiler fuses multiplications and additions there; which, is written
// out here. fastdiff/ops/randn.py compares with torch.randn before it relies on this.
#pragma once

#include "fused.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

constexpr int kWords = 624, kMiddle = 397;  // mt19937's N and M

template <class V>
FASTDIFF_INLINE V twisted(V here, V next, V middle) {
    const V mixed = (here & 0x80000000u) | (next & 0x7fffffffu);
    return middle ^ (mixed >> 1) ^ ((V{} - (mixed & 1)) & 0x9908b0dfu);
}

// Words [begin, end), whose middle word is `offset` away. All that a vector reads is as the serial code would
// have it: the words ahead are old, those 227 back are new, and kLanes is less than either distance.
FASTDIFF_INLINE void twist(uint32_t* words, int begin, int end, int offset) {
    int i = begin;
    for (; i + kLanes <= end; i += kLanes) {
        const Words fresh = twisted(
            load_as<Words>(words + i), load_as<Words>(words + i + 1), load_as<Words>(words + i + offset));
        std::memcpy(words + i, &fresh, sizeof(fresh));
    }
    for (; i < end; ++i) words[i] = twisted(words[i], words[i + 1], words[i + offset]);
}

void mt19937_advance(uint32_t* words) {
    constexpr int kSplit = kWords - kMiddle;
    twist(words, 0, kSplit, kMiddle);
    twist(words, kSplit, kWords - 1, -kSplit);
    words[kWords - 1] = twisted(words[kWords - 1], words[0], words[kMiddle - 1]);
}

// a ^ (b & mask)
FASTDIFF_INLINE Words flipped(Words a, Words b, uint32_t mask) {
#if defined(__AVX512F__)
    return reinterpret_cast<Words>(_mm512_ternarylogic_epi32(
        reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b), _mm512_set1_epi32(static_cast<int>(mask)),
        0x78));
#else
    return a ^ (b & mask);
#endif
}

// 2^24 times a uniform value of [0, 1): the lower 24 bits of the tempered word.
FASTDIFF_INLINE Floats uniform(Words w) {
    w ^= w >> 11;
    w = flipped(w, w << 7, 0x9d2c5680u);
    w = flipped(w, w << 15, 0xefc60000u);
    w ^= w >> 18;
    return __builtin_convertvector(reinterpret_cast<Ints>(w & 0xffffffu), Floats);
}

// -2*log(x), x in (0, 1] and normal. The polynomial is Cephes' times -2, which rounds alike.
FASTDIFF_INLINE Floats cephes_minus_two_log(Floats x) {
    constexpr int32_t kRootHalf = 0x3f3504f3;  // sqrt(0.5)
    const Ints above = bits(x) - kRootHalf;    // the exponent counts from there
    const Floats e = __builtin_convertvector(above >> 23, Floats);
    x = floats((above & 0x007fffff) + kRootHalf) - 1.0f;
    const Floats z = x * x;
    Floats y = fused(splat(-2 * 7.0376836292e-2f), x, splat(-2 * -1.1514610310e-1f));
    y = fused(y, x, splat(-2 * 1.1676998740e-1f));
    y = fused(y, x, splat(-2 * -1.2420140846e-1f));
    y = fused(y, x, splat(-2 * 1.4249322787e-1f));
    y = fused(y, x, splat(-2 * -1.6668057665e-1f));
    y = fused(y, x, splat(-2 * 2.0000714765e-1f));
    y = fused(y, x, splat(-2 * -2.4999993993e-1f));
    y = fused(y, x, splat(-2 * 3.3333331174e-1f));
    y = fused(y * x, z, e * (-2 * -2.12194440e-4f));
    return fused(e, splat(-2 * 0.693359375f), fused(splat(-2.0f), x, z + y));
}

struct Angle {
    Floats sine, cosine;
};

FASTDIFF_INLINE Angle cephes_sincos(Floats x) {  // x in [0, 2*pi)
    const Ints octant = (__builtin_convertvector(x * 1.27323954473516f, Ints) + 1) & ~1;
    const Floats y = __builtin_convertvector(octant, Floats);
    x = fused(y, splat(-0.78515625f), x);
    x = fused(y, splat(-2.4187564849853515625e-4f), x);
    x = fused(y, splat(-3.77489497744594108e-8f), x);
    const Floats z = x * x;
    Floats c = fused(splat(2.443315711809948e-5f), z, splat(-1.388731625493765e-3f));
    c = fused(c, z, splat(4.166664568298827e-2f));
    c = fused(c * z, z, z * -0.5f) + 1.0f;
    Floats s = fused(splat(-1.9515295891e-4f), z, splat(8.3321608736e-3f));
    s = fused(s, z, splat(-1.6666654611e-1f));
    s = fused(s * z, x, x);
    const Ints straight = (octant & 2) == 0;
    const auto signed_by = [](Floats v, Ints turns) FASTDIFF_INLINE_LAMBDA {
        return reinterpret_cast<Floats>(
            flipped(reinterpret_cast<Words>(v), reinterpret_cast<Words>(turns << 29), 0x80000000u));
    };
    return {signed_by(select(straight, s, c), octant), signed_by(select(straight, c, s), octant + 2)};
}

// Where the compiler moves vectors by halves: a block is 8 words of radius, then 8 of angle.
constexpr int kHalf = kLanes < 8 ? kLanes : 8;

// Vectors of the words at p and, at 16 lanes, of those at p + 16.
FASTDIFF_INLINE Words gather(const uint32_t* p) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return reinterpret_cast<Words>(
        _mm512_inserti64x4(low, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)), 1));
#else
    return load_as<Words>(p);
#endif
}

FASTDIFF_INLINE void scatter(float* p, Floats v) {
#if defined(__AVX512F__)
    const __m512 all = reinterpret_cast<__m512>(v);
    _mm256_storeu_ps(p, _mm512_castps512_ps256(all));
    _mm256_storeu_ps(p + 16, _mm512_extractf32x8_ps(all, 1));
#else
    store(p, v);
#endif
}

FASTDIFF_INLINE void normal_pair(const uint32_t* words, float* out) {
    const Floats u = fused(uniform(gather(words)), splat(-0x1p-24f), splat(1.0f));  // exact
    const Angle angle = cephes_sincos(uniform(gather(words + 8)) * (0x1p-24f * 6.28318530717958647692f));
    const Floats radius = square_root(cephes_minus_two_log(u));
    // + 0: as torch's n*std + mean, -0 becomes 0
    scatter(out, fused(radius, angle.cosine, Floats{}));
    scatter(out + 8, fused(radius, angle.sine, Floats{}));
}

void normal_blocks(const uint32_t* words, int64_t blocks, float* out) {
    constexpr int64_t kAtOnce = kLanes == 16 ? 2 : 1;
    int64_t i = 0;
    for (; i + kAtOnce <= blocks; i += kAtOnce)
        for (int part = 0; part < 8; part += kHalf) normal_pair(words + i * 16 + part, out + i * 16 + part);
    if (i < blocks) {
        uint32_t padded[32] = {};
        float values[32];
        std::memcpy(padded, words + i * 16, 64);
        for (int part = 0; part < 8; part += kHalf) normal_pair(padded + part, values + part);
        std::memcpy(out + i * 16, values, 64);
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
