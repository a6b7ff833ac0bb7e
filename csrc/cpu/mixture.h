// What is asked of p*x + q*(g*output + g_uncond*uncond) before a step: magnitudes for dynamic thresholding,
// deviations for guidance rescale.
#pragma once

#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

template <class P, class Output>
FASTDIFF_INLINE Tile<P::unroll> mix(const Mixture& m, int64_t i, int64_t count) {
    Tile<P::unroll> total = {};
    if (m.output) {
        total = load_tile<P>(static_cast<const Output*>(m.output) + i, count);
        if (m.g != 1)
            for (int j = 0; j < P::unroll; ++j) total.v[j] *= m.g;
    }
    if (m.uncond) {
        const auto uncond = load_tile<P>(static_cast<const Output*>(m.uncond) + i, count);
        for (int j = 0; j < P::unroll; ++j) total.v[j] += m.g_uncond * uncond.v[j];
    }
    if (m.x) {
        const auto x = load_tile<P>(m.x + i, count);
        for (int j = 0; j < P::unroll; ++j) total.v[j] = m.p * x.v[j] + m.q * total.v[j];
    } else if (m.q != 1) {
        for (int j = 0; j < P::unroll; ++j) total.v[j] *= m.q;
    }
    return total;
}

template <class P>
FASTDIFF_INLINE void magnitude(Tile<P::unroll>& tile) {
    for (int j = 0; j < P::unroll; ++j) tile.v[j] = floats(bits(tile.v[j]) & 0x7fffffff);
}

// One bit for each lane of a comparison.
FASTDIFF_INLINE uint32_t lanes_of(Ints mask) {
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
    uint32_t found = 0;
    for (int j = 0; j < kLanes; ++j) found |= static_cast<uint32_t>(mask[j] & 1) << j;
    return found;
#endif
}

FASTDIFF_INLINE int64_t ones(uint32_t word) { return __builtin_popcount(word); }

// Calls f with a value of the type the model's outputs are in.
template <class F>
FASTDIFF_INLINE auto for_dtype(Dtype dtype, const F& f) {
    switch (dtype) {
        case Dtype::f16:
            return f(Half{});
        case Dtype::bf16:
            return f(Bfloat{});
        default:
            return f(0.0f);
    }
}

void magnitudes(const Mixture& args, int64_t begin, int64_t end, float* out) {
    const Mixture m = args;
    for_dtype(m.dtype, [&](auto type) FASTDIFF_INLINE_LAMBDA {
        for_pieces(begin, end, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
            using P = decltype(piece);
            auto tile = mix<P, decltype(type)>(m, i, count);
            magnitude<P>(tile);
            store_tile<P>(out + (i - begin), tile, count);
        });
    });
}

// Counts the magnitudes below lo and writes those within [lo, hi], in order, to `inside`.
Split split(const Mixture& args, int64_t begin, int64_t end, float lo, float hi, float* inside) {
    const Mixture m = args;
    Split found = {};
    for_dtype(m.dtype, [&](auto type) FASTDIFF_INLINE_LAMBDA {
        for_pieces(begin, end, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
            using P = decltype(piece);
            auto tile = mix<P, decltype(type)>(m, i, count);
            magnitude<P>(tile);
            const uint32_t there = P::whole ? ~0u : (1u << count) - 1;
            for (int j = 0; j < P::unroll; ++j) {
                const Floats v = tile.v[j];
                found.below += ones(lanes_of(v < splat(lo)) & there);
                found.nans += ones(lanes_of(v != v) & there);
                float lanes[kLanes];
                store(lanes, v);
                for (uint32_t in = lanes_of((v >= splat(lo)) & (v <= splat(hi))) & there; in; in &= in - 1)
                    inside[found.inside++] = lanes[__builtin_ctz(in)];
            }
        });
    });
    return found;
}

// Sums of deviations from a centre, and of their squares.
struct Sums {
    Floats sum, squares;
};

template <class P>
FASTDIFF_INLINE void add_deviations(Sums* sums, const Tile<P::unroll>& tile, float centre, int64_t count) {
    for (int j = 0; j < P::unroll; ++j) {
        Floats d = tile.v[j] - splat(centre);
        if constexpr (!P::whole)
            for (int lane = 0; lane < kLanes; ++lane)
                if (lane >= count) d[lane] = 0;
        sums[j].sum += d;
        sums[j].squares += d * d;
    }
}

// Mean and sum of squared deviations of n values, from sums about a centre near the mean.
FASTDIFF_INLINE void deviations_of(const Sums* sums, float centre, int64_t n, double& mean, double& squares) {
    double total = 0, about = 0;
    for (int j = 0; j < kUnroll; ++j) total += sum(sums[j].sum), about += sum(sums[j].squares);
    mean = centre + total / n;
    squares = about - total * total / n;
}

// Two passes over a block that fits the first cache: the mean, then the deviations from it.
template <class Output>
FASTDIFF_INLINE Deviations
deviations_of_block(const Mixture& output, const Mixture& guided, int64_t begin, int64_t end) {
    float centres[2] = {};
    Sums sums[2][kUnroll] = {};
    const int64_t n = end - begin;
    for (int pass = 0; pass < 2; ++pass) {
        for_pieces(begin, end, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
            using P = decltype(piece);
            add_deviations<P>(sums[0], mix<P, Output>(output, i, count), centres[0], count);
            add_deviations<P>(sums[1], mix<P, Output>(guided, i, count), centres[1], count);
        });
        for (int which = 0; which < 2 && pass == 0; ++which) {
            double mean = 0, unused = 0;
            deviations_of(sums[which], 0.0f, n, mean, unused);
            centres[which] = static_cast<float>(mean);
            for (Sums& s : sums[which]) s = Sums{};
        }
    }
    Deviations found = {};
    deviations_of(sums[0], centres[0], n, found.output_mean, found.output_squares);
    deviations_of(sums[1], centres[1], n, found.mean, found.squares);
    return found;
}

Deviations deviations(const Mixture& output, const Mixture& guided, int64_t begin, int64_t end) {
    return for_dtype(output.dtype, [&](auto type) FASTDIFF_INLINE_LAMBDA {
        return deviations_of_block<decltype(type)>(output, guided, begin, end);
    });
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
