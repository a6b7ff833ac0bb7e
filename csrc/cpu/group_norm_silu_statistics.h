// Statistics from the distances to a guess of the mean, summed up in float32 over a part and in float64 over
// parts: never E[x^2] - E[x]^2, which at mean 1000 would lose the variance. Where the guess turns out to be
// far from the mean, the sums are taken again around the mean.
#pragma once

#include "group_norm_silu_kernels.h"
#include "group_norm_silu_pair.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// Deviations that the guess may be off, squared: the sums lose as many bits as this has, which 16-bit inputs
// do not show.
template <class T>
constexpr double kOff = sizeof(T) == 2 ? 256 : 16;

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

// z = (x - center)*scale + shift. For 16-bit inputs center is 0, as their rounding hides what that loses.
struct Affine {
    float center, scale, shift;
};

template <class T>
FASTDIFF_INLINE Affine affine_of(const Small& small, int64_t row, int64_t channel, double mean, float rstd) {
    const float gain = small.scale ? 1.0f + small.scale[row + channel] : 1.0f;
    const double middle = small.add ? mean - small.add[row + channel] : mean;
    Affine a;
    a.center = kSplit<T> ? 0.0f : static_cast<float>(middle);
    a.scale = rstd * gain * (small.weight ? small.weight[channel] : 1.0f);
    const float offset =
        (small.bias ? small.bias[channel] * gain : 0.0f) + (small.shift ? small.shift[row + channel] : 0.0f);
    a.shift = static_cast<float>(offset - (middle - a.center) * a.scale);
    return a;
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
