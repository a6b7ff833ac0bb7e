// group_norm_silu where the pixels of a channel lie together: a group is one run of memory.
#pragma once

#include "group_norm_silu_activation.h"
#include "group_norm_silu_statistics.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace planar {

// Calls body(channel, offset, count) for what each channel (of the group) has of elements [from, to) of it.
template <class Body>
FASTDIFF_INLINE void for_channels(int64_t pixels, int64_t from, int64_t to, const Body& body) {
    for (int64_t c = from / pixels; from < to; ++c) {
        const int64_t next = (c + 1) * pixels, stop = next < to ? next : to;
        body(c, from, stop - from);
        from = stop;
    }
}

// Calls body(group, from, to) for each of the units [begin, end), parts of groups.
template <class Body>
FASTDIFF_INLINE void for_units(const Sizes& sizes, int64_t begin, int64_t end, const Body& body) {
    const int64_t size = sizes.per_group() * sizes.pixels;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t from = unit % sizes.parts * sizes.part, to = from + sizes.part;
        body(unit / sizes.parts, from, to < size ? to : size, unit);
    }
}

// Guesses the mean of each group from its first elements.
void start(const GroupNorm& args, int64_t begin, int64_t end) {
    const Sizes& s = args.sizes;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        const int64_t size = s.per_group() * s.pixels, n = s.pixels < kPair ? s.pixels : kPair;
        for (int64_t group = begin; group < end; ++group) {
            float total = sum(load_pair<PartOfPair>(static_cast<const T*>(args.x) + group * size, n));
            if (args.residual)
                total += sum(load_pair<PartOfPair>(static_cast<const T*>(args.residual) + group * size, n));
            args.guess[group] = total / n + (args.small.add ? args.small.add[group * s.per_group()] : 0.0f);
        }
    });
}

struct Sums {
    Pair first, second;
};

template <class T, bool joined>
FASTDIFF_INLINE void sum_run(const GroupNorm& args, int64_t at, int64_t count, float point, Sums& sums) {
    for_pairs(count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair d = taken<T, joined, P>(args, at + i, n);
        for (int j = 0; j < 2; ++j) d.v[j] -= point;
        if constexpr (!P::whole) d = masked<T>(d, n);
        for (int j = 0; j < 2; ++j) {
            sums.first.v[j] += d.v[j];
            sums.second.v[j] += d.v[j] * d.v[j];
        }
    });
}

template <class T, bool joined>
void sum_units(const GroupNorm& args, int64_t begin, int64_t end) {
    const int64_t per_group = args.sizes.per_group(), size = per_group * args.sizes.pixels;
    for_units(args.sizes, begin, end, [&](int64_t group, int64_t from, int64_t to, int64_t unit) {
        Sums sums = {};
        const float guess = args.guess[group];
        if (args.small.add)
            for_channels(args.sizes.pixels, from, to, [&](int64_t c, int64_t at, int64_t count) {
                sum_run<T, joined>(
                    args, group * size + at, count, guess - args.small.add[group * per_group + c], sums);
            });
        else
            sum_run<T, joined>(args, group * size + from, to - from, guess, sums);
        args.sums[2 * unit] = sum(sums.first);
        args.sums[2 * unit + 1] = sum(sums.second);
    });
}

void sum(const GroupNorm& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        args.residual ? sum_units<T, true>(args, begin, end) : sum_units<T, false>(args, begin, end);
    });
}

bool finish(const GroupNorm& args, int64_t begin, int64_t end, bool last) {
    const double count = static_cast<double>(args.sizes.per_group()) * args.sizes.pixels;
    return with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        bool settled = true;
        for (int64_t group = begin; group < end; ++group) {
            const double* sums = args.sums + group * args.sizes.parts * 2;
            double first = 0, second = 0;
            for (int64_t part = 0; part < args.sizes.parts; ++part) {
                first += sums[2 * part];
                second += sums[2 * part + 1];
            }
            settled &= settle<T>(args, group, count, first, second, last);
        }
        return settled;
    });
}

template <class T, class A>
FASTDIFF_INLINE void apply_run(const T* x, T* y, int64_t count, Affine a) {
    for_pairs(count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair v = load_pair<P>(x + i, n);
        for (int j = 0; j < 2; ++j) v.v[j] = A::value((v.v[j] - a.center) * a.scale + a.shift);
        store_pair<P>(y + i, v, n);
    });
}

void apply(const GroupNorm& args, int64_t begin, int64_t end) {
    const int64_t channels = args.sizes.channels, per_group = args.sizes.per_group();
    const int64_t size = per_group * args.sizes.pixels;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            for_units(args.sizes, begin, end, [&](int64_t group, int64_t from, int64_t to, int64_t) {
                const T* x = static_cast<const T*>(args.x) + group * size;
                T* y = static_cast<T*>(args.y) + group * size;
                const int64_t sample = group / args.sizes.groups;
                const int64_t first = group % args.sizes.groups * per_group;
                const Statistics s = args.statistics[group];
                for_channels(args.sizes.pixels, from, to, [&](int64_t c, int64_t at, int64_t count) {
                    const Affine a = affine_of<T>(args.small, sample * channels, first + c, s.mean, s.rstd);
                    apply_run<T, decltype(activation)>(x + at, y + at, count, a);
                });
            });
        });
    });
}

void run(const GroupNorm& args, int64_t begin, int64_t end);

constexpr Phases<GroupNorm> phases = {run, start, sum, finish, apply};

void run(const GroupNorm& args, int64_t begin, int64_t end) {
    run_phases(phases, args, begin, end, after_sum);
}

}  // namespace planar
}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
