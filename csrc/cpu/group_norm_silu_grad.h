// What the backward of group_norm_silu is made of, in either layout. With z = xhat*gain + offset and
// dz = grad*activation'(z), the sums over pixels of dz, dz*xhat and xhat give both the gradients of the small
// vectors and the two means that dx = rstd*(gain*dz - mean(gain*dz) - xhat*mean(gain*dz*xhat)) needs.
#pragma once

#include <type_traits>

#include "group_norm_silu_activation.h"
#include "group_norm_silu_pair.h"
#include "group_norm_silu_statistics.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// xhat = (x - center)*rstd, z*kInput = xhat*gain + offset, dx = scale*dz - back - slope*xhat.
constexpr int kGradAffine = 7;

// center, gain, offset and scale of up to kMaps channels of one group, and its rstd.
constexpr int kMaps = 64;
struct GradMaps {
    float center[kMaps], gain[kMaps], offset[kMaps], scale[kMaps];
    float rstd;
};

// Every NaN as store_pair_fast wants it.
FASTDIFF_INLINE float clean(double v) { return v == v ? static_cast<float>(v) : __builtin_nanf(""); }

// What xhat is multiplied by on its way to z.
FASTDIFF_INLINE float gain_of(const Small& small, int64_t row, int64_t channel) {
    const float weight = small.weight ? small.weight[channel] : 1.0f;
    return small.scale ? weight * (1.0f + small.scale[row]) : weight;
}

// Those of channels [channel, channel + count); row: sample*channels + channel; group: among those of all
// samples.
inline void set_maps(
    const GroupNormGrad& args, int64_t row, int64_t channel, int64_t group, int64_t count, GradMaps& maps) {
    const Small& small = args.small;
    const float input = input_factor(args.activation), mean = args.mean[group];
    maps.rstd = clean(args.rstd[group]);
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t n = count - i < kLanes ? count - i : kLanes;
        const auto at = [&](const float* p, int64_t from, float otherwise) FASTDIFF_INLINE_LAMBDA {
            return p ? load_part(p + from + i, n) : splat(otherwise);
        };
        const Floats grown = at(small.scale, row, 0) + 1.0f;
        const Floats gain = at(small.weight, channel, 1) * grown;
        const Floats offset = at(small.bias, channel, 0) * grown + at(small.shift, row, 0);
        store(maps.center + i, clean(mean - at(small.add, row, 0)));
        store(maps.gain + i, clean(input * gain));
        store(maps.offset + i, clean(input * offset));
        store(maps.scale + i, clean(maps.rstd * gain));
    }
}

// What dz is computed for where dx is rounded to T: not bfloat16, as in small groups most of dz cancels.
template <class T>
using Seen = typename std::conditional<kBfloat<T>, Half, T>::type;

// Whether dz waits in dx, in cache, between the sums and the result: float32 holds it as it is. Of 16-bit
// values it waits in args.kept, or is computed again.
template <class T>
constexpr bool kInPlace = sizeof(T) == 4;

// Calls f(element type, activation, whether dz is kept).
template <class F>
FASTDIFF_INLINE void with_kind(const GroupNormGrad& args, const F& f) {
    with_dtype(args.dtype, [&](auto t) {
        with_activation(args.activation, [&](auto activation) {
            if (kInPlace<decltype(t)> || args.kept_size)
                f(t, activation, std::true_type{});
            else
                f(t, activation, std::false_type{});
        });
    });
}

typedef float Quad __attribute__((vector_size(16)));
typedef double Quads __attribute__((vector_size(32)));

FASTDIFF_INLINE Quad fold(Floats v) {
    Quad parts[kLanes / 4];
    std::memcpy(parts, &v, sizeof(v));
    for (int half = kLanes / 8; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
}

// The sums of the lanes of each, and 0.
FASTDIFF_INLINE Quad sum_each(Floats a, Floats b, Floats c) {
    const Quad x = fold(a), y = fold(b), z = fold(c);
#if defined(__AVX2__)
    const __m128 p = reinterpret_cast<__m128>(x), q = reinterpret_cast<__m128>(y);
    const __m128 r = reinterpret_cast<__m128>(z), zero = _mm_setzero_ps();
    const __m128 pq = _mm_add_ps(_mm_unpacklo_ps(p, q), _mm_unpackhi_ps(p, q));
    const __m128 r0 = _mm_add_ps(_mm_unpacklo_ps(r, zero), _mm_unpackhi_ps(r, zero));
    return reinterpret_cast<Quad>(_mm_add_ps(_mm_movelh_ps(pq, r0), _mm_movehl_ps(r0, pq)));
#else
    return Quad{
        (x[0] + x[2]) + (x[1] + x[3]), (y[0] + y[2]) + (y[1] + y[3]), (z[0] + z[2]) + (z[1] + z[3]), 0};
#endif
}

struct Settled {
    float back, slope;
};

// From the sums of a group's channels (sums_of: channel in group -> sums of dz, of dz*xhat, of xhat): writes
// channel_sums, and returns what dx needs.
template <class SumsOf>
FASTDIFF_INLINE Settled settle_group(const GroupNormGrad& args, int64_t group, const SumsOf& sums_of) {
    const Sizes& s = args.sizes;
    const int64_t sample = group / s.groups, first = group % s.groups * s.per_group();
    const int64_t row = sample * s.channels + first, step = s.batch * s.channels;
    Quads total = {};
    for (int64_t c = 0; c < s.per_group(); ++c)
        total += static_cast<double>(gain_of(args.small, row + c, first + c)) * sums_of(c);
    const double rstd = args.rstd[group], count = static_cast<double>(s.per_group()) * s.pixels;
    const double back = rstd * total[0] / count, slope = rstd * total[1] / count, shared = s.pixels * back;
    float* out = args.channel_sums + row;
    for (int64_t c = 0; c < s.per_group(); ++c, ++out) {
        const Quads sums = sums_of(c);
        const double scale = rstd * gain_of(args.small, row + c, first + c);
        out[0] = static_cast<float>(sums[0]);
        out[step] = static_cast<float>(sums[1]);
        out[2 * step] = static_cast<float>(scale * sums[0] - shared - slope * sums[2]);
    }
    return {clean(back), clean(slope)};
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
