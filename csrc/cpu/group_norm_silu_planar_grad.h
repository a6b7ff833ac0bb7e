// The backward of group_norm_silu where the pixels of a channel lie together.
#pragma once

#include "group_norm_silu_grad.h"
#include "group_norm_silu_statistics.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace planar_grad {

// Whether dz waits in dx, in cache, between the sums and the result: float32 holds it as it is.
template <class T>
constexpr bool kKeeps = sizeof(T) == 4;

// Calls body(affine, row, offset, count, unit) for each of the units [begin, end): row numbers the channels
// of all samples, affine is the channel's, offset is where the unit's pixels begin in memory.
template <class Body>
FASTDIFF_INLINE void for_units(const GroupNormGrad& args, int64_t begin, int64_t end, const Body& body) {
    const Sizes& s = args.sizes;
    const int64_t per_group = s.per_group(), parts = s.parts / per_group;  // of a channel
    int64_t row = begin / parts, part = begin % parts, channel = row % s.channels;
    int64_t group = row / per_group, next = (group + 1) * per_group;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t from = part * s.part, rest = s.pixels - from;
        const GradAffine a = grad_affine(args, row, channel, group);
        body(a, row, row * s.pixels + from, rest < s.part ? rest : s.part, unit);
        if (++part < parts) continue;
        part = 0, ++row;
        if (++channel == s.channels) channel = 0;
        if (row == next) ++group, next += per_group;
    }
}

void start(const GroupNormGrad&, int64_t, int64_t) {}

void sum(const GroupNormGrad& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            using A = decltype(activation);
            for_units(
                args, begin, end, [&](const GradAffine& a, int64_t, int64_t at, int64_t count, int64_t unit) {
                    const T* x = static_cast<const T*>(args.x) + at;
                    const T* grad = static_cast<const T*>(args.grad) + at;
                    Pair total = {}, product = {}, hats = {};
                    for_pairs(count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
                        using P = decltype(piece);
                        Pair hat = load_pair<P>(x + i, n), dz = load_pair<P>(grad + i, n);
                        for (int j = 0; j < 2; ++j) hat.v[j] = (hat.v[j] - a.center) * a.rstd;
                        if constexpr (!P::whole) hat = masked<T>(hat, n);
                        for (int j = 0; j < 2; ++j) {
                            dz.v[j] *= A::template slope<float>(hat.v[j] * a.gain + a.offset);
                            total.v[j] += dz.v[j];
                            product.v[j] += dz.v[j] * hat.v[j];
                            hats.v[j] += hat.v[j];
                        }
                        if constexpr (kKeeps<T>) store_pair<P>(static_cast<T*>(args.dx) + at + i, dz, n);
                    });
                    args.sums[3 * unit] = FASTDIFF_LEVEL::sum(total);
                    args.sums[3 * unit + 1] = FASTDIFF_LEVEL::sum(product);
                    args.sums[3 * unit + 2] = FASTDIFF_LEVEL::sum(hats);
                });
        });
    });
}

// Each channel's sums are replaced by what dx needs of them.
bool finish(const GroupNormGrad& args, int64_t begin, int64_t end, bool) {
    const int64_t per_group = args.sizes.per_group(), parts = args.sizes.parts / per_group;
    for (int64_t group = begin; group < end; ++group) {
        double* sums = args.sums + group * per_group * parts * 3;
        const auto of_channel = [&](int64_t c) {
            ChannelSums total = {};
            for (int64_t i = c * parts; i < (c + 1) * parts; ++i) {
                total.dz += sums[3 * i];
                total.product += sums[3 * i + 1];
                total.xhat += sums[3 * i + 2];
            }
            return total;
        };
        settle_group(args, group, of_channel, [&](int64_t c, float scale, float back, float slope) {
            double* out = sums + c * parts * 3;
            out[0] = scale, out[1] = back, out[2] = slope;
        });
    }
    return true;
}

void apply(const GroupNormGrad& args, int64_t begin, int64_t end) {
    const int64_t parts = args.sizes.parts / args.sizes.per_group();
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            using A = decltype(activation);
            for_units(
                args, begin, end, [&](const GradAffine& a, int64_t row, int64_t at, int64_t count, int64_t) {
                    const double* settled = args.sums + row * parts * 3;
                    const float scale = static_cast<float>(settled[0]), back = static_cast<float>(settled[1]);
                    const float slope = static_cast<float>(settled[2]);
                    const T* x = static_cast<const T*>(args.x) + at;
                    T* dx = static_cast<T*>(args.dx) + at;
                    const T* grad = kKeeps<T> ? dx : static_cast<const T*>(args.grad) + at;
                    for_pairs(count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
                        using P = decltype(piece);
                        Pair hat = load_pair<P>(x + i, n), dz = load_pair<P>(grad + i, n);
                        for (int j = 0; j < 2; ++j) {
                            hat.v[j] = (hat.v[j] - a.center) * a.rstd;
                            if constexpr (!kKeeps<T>)
                                dz.v[j] *= A::template slope<Seen<T>>(hat.v[j] * a.gain + a.offset);
                            dz.v[j] = scale * dz.v[j] - back - slope * hat.v[j];
                        }
                        store_pair_fast<P>(dx + i, dz, n);
                    });
                });
        });
    });
}

void run(const GroupNormGrad& args, int64_t begin, int64_t end);

constexpr Phases<GroupNormGrad> phases = {run, start, sum, finish, apply};

void run(const GroupNormGrad& args, int64_t begin, int64_t end) {
    run_phases(phases, args, begin, end, [](const GroupNormGrad& a) { return a; });
}

}  // namespace planar_grad
}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
