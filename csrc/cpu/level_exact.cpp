// fastdiff/counter.py, bit for bit at every level. Compiled like level.cpp, but no multiplication and
// addition may be fused here: each is rounded, as that file says.
#include "counter.h"
#include "fused.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace {

struct Block {
    Words word[4];
};

struct Product {
    Words high, low;
};

FASTDIFF_INLINE Product multiply(Words a, uint32_t by) {
#if defined(__AVX512F__)
    const __m512i v = reinterpret_cast<__m512i>(a), m = _mm512_set1_epi64(by);
    const __m512i even = _mm512_mul_epu32(v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), m);
    return {
        reinterpret_cast<Words>(_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd)),
        reinterpret_cast<Words>(_mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32)))};
#elif defined(__AVX2__)
    const __m256i v = reinterpret_cast<__m256i>(a), m = _mm256_set1_epi64x(by);
    const __m256i even = _mm256_mul_epu32(v, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
    return {
        reinterpret_cast<Words>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa)),
        reinterpret_cast<Words>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa))};
#else
    Product product;
    for (int i = 0; i < kLanes; ++i) {
        const uint64_t whole = static_cast<uint64_t>(a[i]) * by;
        product.high[i] = static_cast<uint32_t>(whole >> 32), product.low[i] = static_cast<uint32_t>(whole);
    }
    return product;
#endif
}

// Philox-4x32-10 for kLanes counters at once.
FASTDIFF_INLINE Block philox(Block c, uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const Product first = multiply(c.word[0], 0xD2511F53u), second = multiply(c.word[2], 0xCD9E8D57u);
        c = {{second.high ^ c.word[1] ^ key0, second.low, first.high ^ c.word[3] ^ key1, first.low}};
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    return c;
}

template <int terms>
FASTDIFF_INLINE Floats polynomial(const float (&coefficients)[terms], Floats x) {
    Floats total = splat(coefficients[0]);
    for (int i = 1; i < terms; ++i) total = total * x + coefficients[i];
    return total;
}

FASTDIFF_INLINE Floats logarithm(Floats u) {
    constexpr float kLog[] = {0.07149753719568253f,  -0.115712009370327f,   0.11661510914564133f,
                              -0.12411050498485565f, 0.14249937236309052f,  -0.1666848063468933f,
                              0.20000708103179932f,  -0.24999989569187164f, 0.3333333134651184f};
    const Ints exponent = (bits(u) - 0x3F3504F3) >> 23;
    const Floats f = floats(bits(u) - (exponent << 23)) - 1.0f;
    const Floats square = f * f, e = __builtin_convertvector(exponent, Floats);
    const Floats tail = f * square * polynomial(kLog, f) - 0.5f * square;
    return e * -0.00021219444170128554f + tail + f + e * 0.693359375f;
}

struct Pair {
    Floats first, second;
};

FASTDIFF_INLINE Pair box_muller(Words x, Words y) {
    constexpr float kSin[] = {
        0.00015820653061382473f, -0.004681266378611326f, 0.07969257980585098f, -0.6459640860557556f,
        1.5707963705062866f};
    constexpr float kCos[] = {
        0.00090362987248227f, -0.02086007036268711f, 0.25366920232772827f, -1.2337005138397217f, 1.0f};
    const Floats u = __builtin_convertvector(reinterpret_cast<Ints>((x >> 8) + 1), Floats) * 0x1p-24f;
    const Floats radius = square_root(-2.0f * logarithm(u));
    const Ints turn = reinterpret_cast<Ints>(y >> 8), quarter = turn >> 22;
    const Floats v = __builtin_convertvector((turn & 0x3fffff) - 0x200000, Floats) * 0x1p-22f;
    const Floats square = v * v;
    const Floats sine = v * polynomial(kSin, square), cosine = polynomial(kCos, square);
    const Ints swapped = (quarter & 1) != 0, sign = (quarter & 2) << 30;
    const Floats first = select(swapped, -sine, cosine), second = select(swapped, cosine, sine);
    return {radius * floats(bits(first) ^ sign), radius * floats(bits(second) ^ sign)};
}

// The block of each lane of a vector, such that interleaving four vectors within 128 bits puts the values in
// order.
FASTDIFF_INLINE Words lane_blocks() {
    Words blocks;
    for (int i = 0; i < kLanes; ++i) blocks[i] = i % 4 * (kLanes / 4) + i / 4;
    return blocks;
}

#if defined(__AVX512F__)
    #define FASTDIFF_INTERLEAVE(name, a, b) \
        reinterpret_cast<Floats>(_mm512_##name(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)))
    #define FASTDIFF_INTERLEAVE_PAIRS(name, a, b) \
        reinterpret_cast<Floats>(_mm512_##name(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b)))
#elif defined(__AVX2__)
    #define FASTDIFF_INTERLEAVE(name, a, b) \
        reinterpret_cast<Floats>(_mm256_##name(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)))
    #define FASTDIFF_INTERLEAVE_PAIRS(name, a, b) \
        reinterpret_cast<Floats>(_mm256_##name(reinterpret_cast<__m256d>(a), reinterpret_cast<__m256d>(b)))
#endif

// Stores v[k] of lane i at out[4*block(i) + k].
FASTDIFF_INLINE void store_blocks(float* out, const Floats (&v)[4]) {
#ifdef FASTDIFF_INTERLEAVE
    const Floats low01 = FASTDIFF_INTERLEAVE(unpacklo_ps, v[0], v[1]);
    const Floats high01 = FASTDIFF_INTERLEAVE(unpackhi_ps, v[0], v[1]);
    const Floats low23 = FASTDIFF_INTERLEAVE(unpacklo_ps, v[2], v[3]);
    const Floats high23 = FASTDIFF_INTERLEAVE(unpackhi_ps, v[2], v[3]);
    store(out, FASTDIFF_INTERLEAVE_PAIRS(unpacklo_pd, low01, low23));
    store(out + kLanes, FASTDIFF_INTERLEAVE_PAIRS(unpackhi_pd, low01, low23));
    store(out + 2 * kLanes, FASTDIFF_INTERLEAVE_PAIRS(unpacklo_pd, high01, high23));
    store(out + 3 * kLanes, FASTDIFF_INTERLEAVE_PAIRS(unpackhi_pd, high01, high23));
#else
    for (int i = 0; i < kLanes; ++i)
        for (int k = 0; k < 4; ++k) out[(i % 4 * (kLanes / 4) + i / 4) * 4 + k] = v[k][i];
#endif
}

// The values of blocks [block, block + kLanes), block being a multiple of kLanes.
FASTDIFF_INLINE void normal_tile(uint64_t seed, uint64_t stream, int64_t block, float* out) {
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(block) >> 32);
    const uint32_t stream_low = static_cast<uint32_t>(stream),
                   stream_high = static_cast<uint32_t>(stream >> 32);
    const Block words = philox(
        {{lane_blocks() + static_cast<uint32_t>(block), Words{} + high, Words{} + stream_low,
          Words{} + stream_high}},
        seed);
    const Pair a = box_muller(words.word[0], words.word[1]), b = box_muller(words.word[2], words.word[3]);
    store_blocks(out, {a.first, a.second, b.first, b.second});
}

}  // namespace

void counter_normal(uint64_t seed, uint64_t stream, int64_t first, int64_t count, float* out) {
    const int64_t end = first + count;
    int64_t tile = first / kTile * kTile;  // kTile = 4*kLanes values
    for (; tile < end; tile += kTile) {
        if (tile >= first && tile + kTile <= end) {
            normal_tile(seed, stream, tile / 4, out + (tile - first));
            continue;
        }
        float whole[kTile];
        normal_tile(seed, stream, tile / 4, whole);
        const int64_t from = tile < first ? first : tile, to = tile + kTile < end ? tile + kTile : end;
        std::memcpy(out + (from - first), whole + (from - tile), (to - from) * sizeof(float));
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
