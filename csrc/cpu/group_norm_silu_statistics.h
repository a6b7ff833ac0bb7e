// Statistics from the distances to a guess of the mean, summed up in float32 over a part and in float64 over
// parts: never E[x^2] - E[x]^2, which at mean 1000 would lose the variance. Where the guess turns out to be
// far from the mean, the sums are taken again around the mean.
#pragma once

#include <type_traits>

#include "group_norm_silu_activation.h"
#include "group_norm_silu_pair.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// Deviations that the guess may be off, squared: the sums lose as many bits as this has, which 16-bit inputs
// do not show.
template <class T>
constexpr double kOff = sizeof(T) == 2 ? 256 : 2;

// Elements [at, at + n) of x, plus the residual's where there is one, rounded and written to summed.
template <class T, bool joined, class P>
FASTDIFF_INLINE Pair taken(const GroupNorm& args, int64_t at, int64_t n) {
    Pair x = load_pair<P>(static_cast<const T*>(args.x) + at, n);
    if constexpr (joined) {
        const Pair other = load_pair<P>(static_cast<const T*>(args.residual) + at, n);
        for (int j = 0; j < 2; ++j) x.v[j] += other.v[j];
        x = rounded<T>(x);
        store_pair<P>(static_cast<T*>(args.summed) + at, x, n);
    }
    return x;
}

// The norm of what was summed, once it was.
inline GroupNorm after_sum(GroupNorm args) {
    if (args.residual) {
        args.x = args.summed;
        args.residual = nullptr;
    }
    return args;
}

// Settles the statistics of a group of `count` elements from its sums around the guess. False where the guess
// was too far off: it is then the mean.
template <class T>
FASTDIFF_INLINE bool settle(
    const GroupNorm& args, int64_t group, double count, double first, double second, bool last) {
    const double off = first / count, squares = second - first * off;
    const double mean = args.guess[group] + off;
    if (!last && !(off * off * count <= kOff<T> * squares)) {
        args.guess[group] = static_cast<float>(mean);
        return false;
    }
    const float rstd =
        static_cast<float>(1.0 / __builtin_sqrt((squares > 0 ? squares : 0 * squares) / count + args.eps));
    args.statistics[group] = {mean, rstd};
    args.mean[group] = static_cast<float>(mean);
    args.rstd[group] = rstd;
    return true;
}

// Every NaN as store_pair_fast wants it.
FASTDIFF_INLINE Floats clean(Floats v) { return select(v == v, v, splat(__builtin_nanf(""))); }

// z*kInput = (x - center)*scale + shift, for channels [channel, channel + count) of one group; row: where the
// sample's channels begin in add, scale and shift. For bfloat16 center is 0: its rounding hides what that
// loses.
template <class T>
FASTDIFF_INLINE void set_affine(
    const Small& small, int64_t row, int64_t channel, int64_t count, Statistics statistics, float input,
    float* centers, float* scales, float* shifts) {
    const float mean = static_cast<float>(statistics.mean);
    const float below = static_cast<float>(statistics.mean - mean), grown = input * statistics.rstd;
    for_pieces(0, count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        const auto at = [&](const float* p, int64_t offset, float otherwise) FASTDIFF_INLINE_LAMBDA {
            if (p) return load_tile<P>(p + offset + i, n);
            Tile<P::unroll> tile;
            for (Floats& v : tile.v) v = splat(otherwise);
            return tile;
        };
        const auto add = at(small.add, row + channel, 0), gain = at(small.scale, row + channel, 0);
        const auto weight = at(small.weight, channel, 1), bias = at(small.bias, channel, 0);
        const auto shift = at(small.shift, row + channel, 0);
        Tile<P::unroll> center, scale, offset;
        for (int j = 0; j < P::unroll; ++j) {
            const Floats one = gain.v[j] + 1.0f;
            const Floats middle = mean - add.v[j], back = middle - mean;  // rest: what middle was rounded by
            const Floats rest = ((mean - (middle - back)) - (add.v[j] + back)) + below;
            scale.v[j] = weight.v[j] * one * grown;
            offset.v[j] = (bias.v[j] * one + shift.v[j]) * input - rest * scale.v[j];
            if constexpr (kBfloat<T>) {
                offset.v[j] -= middle * scale.v[j];
                scale.v[j] = clean(scale.v[j]), offset.v[j] = clean(offset.v[j]);
            }
            center.v[j] = middle;
        }
        store_tile<P>(centers + i, center, n);
        store_tile<P>(scales + i, scale, n);
        store_tile<P>(shifts + i, offset, n);
    });
}

// Rounds ties to even only where a result can be one: not after an activation.
template <class A, class P, class T>
FASTDIFF_INLINE void store_result(T* y, const Pair& v, int64_t n) {
    if constexpr (std::is_same<A, Identity>::value)
        store_pair<P>(y, v, n);
    else
        store_pair_fast<P>(y, v, n);
}

// 1, unknown to the compiler: x*one + y is an addition that runs where multiplications do, which are fewer.
FASTDIFF_INLINE Floats opaque_one() {
    volatile float one = 1.0f;
    return splat(one);
}

struct GroupSums {
    Pair first, second;

    FASTDIFF_INLINE void add(const Pair& d, Floats one) {
        first.v[0] += d.v[0];
        first.v[1] = d.v[1] * one + first.v[1];
        for (int j = 0; j < 2; ++j) second.v[j] += d.v[j] * d.v[j];
    }
    FASTDIFF_INLINE void merge(const GroupSums& other) {
        for (int j = 0; j < 2; ++j) {
            first.v[j] += other.first.v[j];
            second.v[j] += other.second.v[j];
        }
    }
};

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
