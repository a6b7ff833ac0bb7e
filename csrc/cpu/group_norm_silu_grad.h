// What the backward of group_norm_silu is made of, in either layout. With z = xhat*gain + offset and
// dz = grad*activation'(z), the sums over pixels of dz, dz*xhat and xhat give both the gradients of the small
// vectors and the two means that dx = rstd*(gain*dz - mean(gain*dz) - xhat*mean(gain*dz*xhat)) needs.
#pragma once

#include <type_traits>

#include "group_norm_silu_activation.h"
#include "group_norm_silu_pair.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// xhat = (x - center)*rstd, z*kInput = xhat*gain + offset, dx = scale*dz - back - slope*xhat.
struct GradAffine {
    float center, rstd, gain, offset, scale, back, slope;
};
constexpr int kGradAffine = 7;

// Every NaN as store_pair_fast wants it.
FASTDIFF_INLINE float clean(double v) { return v == v ? static_cast<float>(v) : __builtin_nanf(""); }

// What xhat is multiplied by on its way to z.
FASTDIFF_INLINE float gain_of(const Small& small, int64_t row, int64_t channel) {
    const float weight = small.weight ? small.weight[channel] : 1.0f;
    return small.scale ? weight * (1.0f + small.scale[row]) : weight;
}

// row: sample*channels + channel; group: among those of all samples.
FASTDIFF_INLINE GradAffine
grad_affine(const GroupNormGrad& args, int64_t row, int64_t channel, int64_t group) {
    const Small& small = args.small;
    const float input = input_factor(args.activation), grown = small.scale ? 1.0f + small.scale[row] : 1.0f;
    const float offset = grown * (small.bias ? small.bias[channel] : 0.0f);
    GradAffine a = {};
    a.center = clean(args.mean[group] - (small.add ? small.add[row] : 0.0f));
    a.rstd = clean(args.rstd[group]);
    a.gain = clean(input * gain_of(small, row, channel));
    a.offset = clean(input * (offset + (small.shift ? small.shift[row] : 0.0f)));
    return a;
}

// What dz is computed for where dx is rounded to T: not bfloat16, as in small groups most of dz cancels.
template <class T>
using Seen = typename std::conditional<kBfloat<T>, Half, T>::type;

struct ChannelSums {
    double dz, product, xhat;
};

// From the sums of a group's channels (channel in group -> ChannelSums): writes channel_sums, and calls
// set(channel in group, scale, back, slope).
template <class SumsOf, class Set>
FASTDIFF_INLINE void settle_group(
    const GroupNormGrad& args, int64_t group, const SumsOf& sums_of, const Set& set) {
    const Sizes& s = args.sizes;
    const int64_t sample = group / s.groups, first = group % s.groups * s.per_group();
    const int64_t row = sample * s.channels + first;
    double plain = 0, along = 0;
    for (int64_t c = 0; c < s.per_group(); ++c) {
        const ChannelSums sums = sums_of(c);
        const double gain = gain_of(args.small, row + c, first + c);
        plain += gain * sums.dz;
        along += gain * sums.product;
    }
    const double rstd = args.rstd[group], count = static_cast<double>(s.per_group()) * s.pixels;
    const double back = rstd * plain / count, slope = rstd * along / count;
    for (int64_t c = 0; c < s.per_group(); ++c) {
        const ChannelSums sums = sums_of(c);
        const double scale = rstd * gain_of(args.small, row + c, first + c);
        float* out = args.channel_sums + row + c;
        const int64_t step = s.batch * s.channels;
        out[0] = static_cast<float>(sums.dz);
        out[step] = static_cast<float>(sums.product);
        out[2 * step] = static_cast<float>(scale * sums.dz - s.pixels * back - slope * sums.xhat);
        set(c, clean(scale), clean(back), clean(slope));
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
