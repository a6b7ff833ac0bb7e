// The backward of group_norm_silu where the channels of a pixel lie together.
#pragma once

#include "group_norm_silu_grad.h"
#include "group_norm_silu_last.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace channels_last_grad {

using channels_last::for_units;
using channels_last::kRows;

// All but back and slope, by channel.
template <class T>
void set_affine(const GroupNormGrad& args, int64_t sample) {
    const Sizes& s = args.sizes;
    float* out = args.affine + sample * kGradAffine * s.padded;
    GradMaps maps;
    for (int64_t group = 0, c = 0; group < s.groups; ++group)
        for (const int64_t end = c + s.per_group(); c < end;) {
            const int64_t n = end - c < kMaps ? end - c : kMaps;
            set_maps(args, sample * s.channels + c, c, sample * s.groups + group, n, maps);
            for (int64_t i = 0; i < n; ++i, ++c) {
                float* to = out + place<T>(c);
                to[0] = maps.center[i], to[s.padded] = maps.rstd, to[2 * s.padded] = maps.gain[i];
                to[3 * s.padded] = maps.offset[i], to[4 * s.padded] = maps.scale[i];
            }
        }
}

void start(const GroupNormGrad& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        for (int64_t sample = begin; sample < end; ++sample) set_affine<decltype(t)>(args, sample);
    });
}

FASTDIFF_INLINE void normalize(Pair& x, const float* affine, int64_t padded) {
    const Pair center = load_pair(affine), rstd = load_pair(affine + padded);
    for (int j = 0; j < 2; ++j) x.v[j] = (x.v[j] - center.v[j]) * rstd.v[j];
}

// grad becomes dz.
template <class T, class A>
FASTDIFF_INLINE void differentiate(Pair& grad, const Pair& hat, const float* affine, int64_t padded) {
    const Pair gain = load_pair(affine + 2 * padded), offset = load_pair(affine + 3 * padded);
    for (int j = 0; j < 2; ++j) grad.v[j] *= A::template slope<T>(hat.v[j] * gain.v[j] + offset.v[j]);
}

// kept: where the dz of the first of these pixels is kept.
template <class T, class A, bool keeps, class P>
FASTDIFF_INLINE void sum_rows(
    const GroupNormGrad& args, int64_t at, int64_t rows, int64_t n, const float* affine, float* columns,
    int64_t kept) {
    const int64_t padded = args.sizes.padded, channels = args.sizes.channels;
    Pair total[3] = {};
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = at + r * channels;
        const T* x = static_cast<const T*>(args.x) + i;
        const T* grad = static_cast<const T*>(args.grad) + i;
        prefetch_pair(x + kRows * channels);
        prefetch_pair(grad + kRows * channels);
        Pair hat = load_pair<P>(x, n), dz = load_pair<P>(grad, n);
        normalize(hat, affine, padded);
        differentiate<float, A>(dz, hat, affine, padded);
        for (int j = 0; j < 2; ++j) {
            total[0].v[j] += dz.v[j];
            total[1].v[j] += dz.v[j] * hat.v[j];
            total[2].v[j] += hat.v[j];
        }
        if constexpr (kInPlace<T>)
            store_pair<P>(static_cast<T*>(args.dx) + i, dz, n);
        else if constexpr (keeps)
            store_pair(args.kept + kept + r * padded, dz);
    }
    for (int k = 0; k < 3; ++k) {
        const Pair old = load_pair(columns + k * padded);
        for (int j = 0; j < 2; ++j) total[k].v[j] += old.v[j];
        store_pair(columns + k * padded, total[k]);
    }
}

void sum(const GroupNormGrad& args, int64_t begin, int64_t end) {
    const int64_t channels = args.sizes.channels, padded = args.sizes.padded;
    with_kind(args, [&](auto t, auto activation, auto keeps) {
        using T = decltype(t);
        using A = decltype(activation);
        for_units(args.sizes, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t unit) {
            const float* affine = args.affine + sample * kGradAffine * padded;
            float* columns = args.columns + unit * 3 * padded;
            for (int64_t c = 0; c < 3 * padded; ++c) columns[c] = 0;
            for (int64_t row = from; row < to; row += kRows) {
                const int64_t at = (sample * args.sizes.pixels + row) * channels;
                const int64_t rows = to - row < kRows ? to - row : kRows;
                const int64_t kept = sample * args.kept_step + row * padded;
                for_pairs(channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
                    sum_rows<T, A, decltype(keeps)::value, decltype(piece)>(
                        args, at + c, rows, n, affine + c, columns + c, kept + c);
                });
            }
        });
    });
}

template <class T>
void finish_group(const GroupNormGrad& args, int64_t sample, int64_t group) {
    const Sizes& s = args.sizes;
    const float* columns = args.columns + sample * s.parts * 3 * s.padded;
    float* affine = args.affine + sample * kGradAffine * s.padded;
    const int64_t first = group * s.per_group();
    const Settled settled =
        settle_group(args, sample * s.groups + group, [&](int64_t c) FASTDIFF_INLINE_LAMBDA {
            Quads total = {};
            const float* column = columns + place<T>(first + c);
            for (int64_t part = 0; part < s.parts; ++part, column += 3 * s.padded)
                total += Quads{column[0], column[s.padded], column[2 * s.padded], 0};
            return total;
        });
    for (int64_t c = first; c < first + s.per_group(); ++c) {
        float* out = affine + place<T>(c);
        out[5 * s.padded] = settled.back, out[6 * s.padded] = settled.slope;
    }
}

bool finish(const GroupNormGrad& args, int64_t begin, int64_t end, bool) {
    with_dtype(args.dtype, [&](auto t) {
        for (int64_t sample = begin; sample < end; ++sample)
            for (int64_t group = 0; group < args.sizes.groups; ++group)
                finish_group<decltype(t)>(args, sample, group);
    });
    return true;
}

template <class T, class A, bool keeps>
void apply_row(const GroupNormGrad& args, int64_t at, const float* affine, int64_t kept) {
    const int64_t padded = args.sizes.padded;
    const T* x = static_cast<const T*>(args.x) + at;
    const T* grad = static_cast<const T*>(args.grad) + at;
    T* dx = static_cast<T*>(args.dx) + at;
    for_pairs(args.sizes.channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair hat = load_pair<P>(x + c, n), dz;
        normalize(hat, affine + c, padded);
        if constexpr (kInPlace<T>) {
            dz = load_pair<P>(dx + c, n);
        } else if constexpr (keeps) {
            dz = load_pair(args.kept + kept + c);
        } else {
            dz = load_pair<P>(grad + c, n);
            differentiate<Seen<T>, A>(dz, hat, affine + c, padded);
        }
        const float* settled = affine + 4 * padded + c;
        const Pair scale = load_pair(settled), back = load_pair(settled + padded);
        const Pair slope = load_pair(settled + 2 * padded);
        for (int j = 0; j < 2; ++j) dz.v[j] = scale.v[j] * dz.v[j] - back.v[j] - slope.v[j] * hat.v[j];
        store_pair_fast<P>(dx + c, dz, n);
    });
}

void apply(const GroupNormGrad& args, int64_t begin, int64_t end) {
    const Sizes& s = args.sizes;
    with_kind(args, [&](auto t, auto activation, auto keeps) {
        for_units(s, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t) {
            const float* affine = args.affine + sample * kGradAffine * s.padded;
            const int64_t kept = sample * args.kept_step;
            for (int64_t row = from; row < to; ++row)
                apply_row<decltype(t), decltype(activation), decltype(keeps)::value>(
                    args, (sample * s.pixels + row) * s.channels, affine, kept + row * s.padded);
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
