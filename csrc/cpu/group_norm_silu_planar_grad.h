// The backward of group_norm_silu where the pixels of a channel lie together.
#pragma once

#include "group_norm_silu_grad.h"
#include "group_norm_silu_statistics.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace planar_grad {

// One channel's part: where its pixels begin in memory, and in args.kept.
struct Unit {
    int64_t number, group, at, count, kept;
};

// Calls body(unit, maps, its channel in maps) for each of the units [begin, end).
template <class Body>
FASTDIFF_INLINE void for_units(const GroupNormGrad& args, int64_t begin, int64_t end, const Body& body) {
    const Sizes& s = args.sizes;
    const int64_t per_group = s.per_group(), parts = s.parts / per_group;  // of a channel
    const int64_t pitch = args.kept_size / per_group;
    int64_t row = begin / parts, part = begin % parts;
    GradMaps maps;
    for (int64_t unit = begin; unit < end;) {
        const int64_t group = row / per_group, in_group = row % per_group;
        const int64_t left = (end - 1) / parts + 1 - row, rest = per_group - in_group;
        int64_t n = left < rest ? left : rest;
        if (n > kMaps) n = kMaps;
        set_maps(args, row, row % s.channels, group, n, maps);
        int64_t kept = group * args.kept_step + in_group * pitch;
        for (int64_t i = 0; i < n; ++i, ++row, part = 0, kept += pitch)
            for (; part < parts && unit < end; ++part, ++unit) {
                const int64_t from = part * s.part, here = s.pixels - from;
                const int64_t count = here < s.part ? here : s.part;
                body(Unit{unit, group, row * s.pixels + from, count, kept + from}, maps, i);
            }
    }
}

void start(const GroupNormGrad&, int64_t, int64_t) {}

template <class T, class A, bool keeps>
FASTDIFF_INLINE Quad sum_unit(const GroupNormGrad& args, const Unit& unit, const GradMaps& maps, int64_t c) {
    const T* x = static_cast<const T*>(args.x) + unit.at;
    const T* grad = static_cast<const T*>(args.grad) + unit.at;
    const float center = maps.center[c], gain = maps.gain[c], offset = maps.offset[c], rstd = maps.rstd;
    Pair total = {}, product = {}, hats = {};
    for_pairs(unit.count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair hat = load_pair<P>(x + i, n), dz = load_pair<P>(grad + i, n);
        for (int j = 0; j < 2; ++j) hat.v[j] = (hat.v[j] - center) * rstd;
        if constexpr (!P::whole) hat = masked<T>(hat, n);
        for (int j = 0; j < 2; ++j) {
            dz.v[j] *= A::template slope<float>(hat.v[j] * gain + offset);
            total.v[j] += dz.v[j];
            product.v[j] += dz.v[j] * hat.v[j];
            hats.v[j] += hat.v[j];
        }
        if constexpr (kInPlace<T>)
            store_pair<P>(static_cast<T*>(args.dx) + unit.at + i, dz, n);
        else if constexpr (keeps)
            store_pair(args.kept + unit.kept + i, dz);
    });
    return sum_each(total.v[0] + total.v[1], product.v[0] + product.v[1], hats.v[0] + hats.v[1]);
}

void sum(const GroupNormGrad& args, int64_t begin, int64_t end) {
    with_kind(args, [&](auto t, auto activation, auto keeps) {
        for_units(
            args, begin, end, [&](const Unit& unit, const GradMaps& maps, int64_t c) FASTDIFF_INLINE_LAMBDA {
                const Quad sums =
                    sum_unit<decltype(t), decltype(activation), decltype(keeps)::value>(args, unit, maps, c);
                std::memcpy(args.sums + 4 * unit.number, &sums, sizeof(sums));
            });
    });
}

// A group's first sums are replaced by what dx needs of them all.
bool finish(const GroupNormGrad& args, int64_t begin, int64_t end, bool) {
    const int64_t parts = args.sizes.parts / args.sizes.per_group();
    for (int64_t group = begin; group < end; ++group) {
        float* sums = args.sums + group * args.sizes.parts * 4;
        const Settled settled = settle_group(args, group, [&](int64_t c) FASTDIFF_INLINE_LAMBDA {
            Quads total = {};
            for (int64_t i = c * parts; i < (c + 1) * parts; ++i)
                total += __builtin_convertvector(load_as<Quad>(sums + 4 * i), Quads);
            return total;
        });
        sums[0] = settled.back, sums[1] = settled.slope;
    }
    return true;
}

template <class T, class A, bool keeps>
FASTDIFF_INLINE void apply_unit(
    const GroupNormGrad& args, const Unit& unit, const GradMaps& maps, int64_t c) {
    const float* settled = args.sums + unit.group * args.sizes.parts * 4;
    const float back = settled[0], slope = settled[1], scale = maps.scale[c];
    const float center = maps.center[c], gain = maps.gain[c], offset = maps.offset[c], rstd = maps.rstd;
    const T* x = static_cast<const T*>(args.x) + unit.at;
    T* dx = static_cast<T*>(args.dx) + unit.at;
    const T* grad = static_cast<const T*>(args.grad) + unit.at;
    for_pairs(unit.count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair hat = load_pair<P>(x + i, n), dz;
        if constexpr (kInPlace<T>)
            dz = load_pair<P>(dx + i, n);
        else if constexpr (keeps)
            dz = load_pair(args.kept + unit.kept + i);
        else
            dz = load_pair<P>(grad + i, n);
        for (int j = 0; j < 2; ++j) {
            hat.v[j] = (hat.v[j] - center) * rstd;
            if constexpr (!keeps) dz.v[j] *= A::template slope<Seen<T>>(hat.v[j] * gain + offset);
            dz.v[j] = scale * dz.v[j] - back - slope * hat.v[j];
        }
        store_pair_fast<P>(dx + i, dz, n);
    });
}

void apply(const GroupNormGrad& args, int64_t begin, int64_t end) {
    with_kind(args, [&](auto t, auto activation, auto keeps) {
        for_units(
            args, begin, end, [&](const Unit& unit, const GradMaps& maps, int64_t c) FASTDIFF_INLINE_LAMBDA {
                apply_unit<decltype(t), decltype(activation), decltype(keeps)::value>(args, unit, maps, c);
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
