// The backward of group_norm_silu where the channels of a pixel lie together.
#pragma once

#include "group_norm_silu_grad.h"
#include "group_norm_silu_last.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace channels_last_grad {

using channels_last::for_units;
using channels_last::kRows;

template <class T>
void set_affine(const GroupNormGrad& args, int64_t sample) {
    const Sizes& s = args.sizes;
    float* out = args.affine + sample * kGradAffine * s.padded;
    for (int64_t group = 0, c = 0; group < s.groups; ++group)
        for (const int64_t end = c + s.per_group(); c < end; ++c) {
            const GradAffine a = grad_affine(args, sample * s.channels + c, c, sample * s.groups + group);
            float* to = out + place<T>(c);
            to[0] = a.center, to[s.padded] = a.rstd, to[2 * s.padded] = a.gain, to[3 * s.padded] = a.offset;
        }
}

void start(const GroupNormGrad& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        for (int64_t sample = begin; sample < end; ++sample) set_affine<decltype(t)>(args, sample);
    });
}

// The lanes' xhat in x, and dz in grad.
template <class T, class A>
FASTDIFF_INLINE void differentiate(Pair& x, Pair& grad, const float* affine, int64_t padded) {
    const Pair center = load_pair(affine), rstd = load_pair(affine + padded);
    const Pair gain = load_pair(affine + 2 * padded), offset = load_pair(affine + 3 * padded);
    for (int j = 0; j < 2; ++j) {
        x.v[j] = (x.v[j] - center.v[j]) * rstd.v[j];
        grad.v[j] *= A::template slope<T>(x.v[j] * gain.v[j] + offset.v[j]);
    }
}

template <class T, class A, class P>
FASTDIFF_INLINE void sum_rows(
    const GroupNormGrad& args, int64_t at, int64_t rows, int64_t n, const float* affine, float* columns) {
    const int64_t padded = args.sizes.padded;
    Pair total[3] = {};
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = at + r * args.sizes.channels;
        Pair hat = load_pair<P>(static_cast<const T*>(args.x) + i, n);
        Pair dz = load_pair<P>(static_cast<const T*>(args.grad) + i, n);
        differentiate<float, A>(hat, dz, affine, padded);
        for (int j = 0; j < 2; ++j) {
            total[0].v[j] += dz.v[j];
            total[1].v[j] += dz.v[j] * hat.v[j];
            total[2].v[j] += hat.v[j];
        }
    }
    for (int k = 0; k < 3; ++k) {
        const Pair old = load_pair(columns + k * padded);
        for (int j = 0; j < 2; ++j) total[k].v[j] += old.v[j];
        store_pair(columns + k * padded, total[k]);
    }
}

void sum(const GroupNormGrad& args, int64_t begin, int64_t end) {
    const int64_t channels = args.sizes.channels, padded = args.sizes.padded;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            using A = decltype(activation);
            for_units(args.sizes, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t unit) {
                const float* affine = args.affine + sample * kGradAffine * padded;
                float* columns = args.columns + unit * 3 * padded;
                for (int64_t c = 0; c < 3 * padded; ++c) columns[c] = 0;
                for (int64_t row = from; row < to; row += kRows) {
                    const int64_t at = (sample * args.sizes.pixels + row) * channels;
                    const int64_t rows = to - row < kRows ? to - row : kRows;
                    for_pairs(channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
                        sum_rows<T, A, decltype(piece)>(args, at + c, rows, n, affine + c, columns + c);
                    });
                }
            });
        });
    });
}

template <class T>
void finish_group(const GroupNormGrad& args, int64_t sample, int64_t group) {
    const Sizes& s = args.sizes;
    const float* columns = args.columns + sample * s.parts * 3 * s.padded;
    float* affine = args.affine + sample * kGradAffine * s.padded;
    const int64_t first = group * s.per_group();
    const auto of_channel = [&](int64_t c) {
        ChannelSums total = {};
        const float* column = columns + place<T>(first + c);
        for (int64_t part = 0; part < s.parts; ++part, column += 3 * s.padded) {
            total.dz += column[0];
            total.product += column[s.padded];
            total.xhat += column[2 * s.padded];
        }
        return total;
    };
    settle_group(
        args, sample * s.groups + group, of_channel, [&](int64_t c, float scale, float back, float slope) {
            float* out = affine + place<T>(first + c);
            out[4 * s.padded] = scale, out[5 * s.padded] = back, out[6 * s.padded] = slope;
        });
}

bool finish(const GroupNormGrad& args, int64_t begin, int64_t end, bool) {
    with_dtype(args.dtype, [&](auto t) {
        for (int64_t sample = begin; sample < end; ++sample)
            for (int64_t group = 0; group < args.sizes.groups; ++group)
                finish_group<decltype(t)>(args, sample, group);
    });
    return true;
}

template <class T, class A>
void apply_row(const GroupNormGrad& args, int64_t at, const float* affine) {
    const int64_t padded = args.sizes.padded;
    const T* x = static_cast<const T*>(args.x) + at;
    const T* grad = static_cast<const T*>(args.grad) + at;
    T* dx = static_cast<T*>(args.dx) + at;
    for_pairs(args.sizes.channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair hat = load_pair<P>(x + c, n), dz = load_pair<P>(grad + c, n);
        differentiate<Seen<T>, A>(hat, dz, affine + c, padded);
        const float* settled = affine + 4 * padded + c;
        const Pair scale = load_pair(settled), back = load_pair(settled + padded);
        const Pair slope = load_pair(settled + 2 * padded);
        for (int j = 0; j < 2; ++j) dz.v[j] = scale.v[j] * dz.v[j] - back.v[j] - slope.v[j] * hat.v[j];
        store_pair_fast<P>(dx + c, dz, n);
    });
}

void apply(const GroupNormGrad& args, int64_t begin, int64_t end) {
    const Sizes& s = args.sizes;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            for_units(s, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t) {
                const float* affine = args.affine + sample * kGradAffine * s.padded;
                for (int64_t row = from; row < to; ++row)
                    apply_row<T, decltype(activation)>(args, (sample * s.pixels + row) * s.channels, affine);
            });
        });
    });
}

void run(const GroupNormGrad& args, int64_t begin, int64_t end);

constexpr Phases<GroupNormGrad> phases = {run, start, sum, finish, apply};

void run(const GroupNormGrad& args, int64_t begin, int64_t end) {
    run_phases(phases, args, begin, end, [](const GroupNormGrad& a) { return a; });
}

}  // namespace channels_last_grad
}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
