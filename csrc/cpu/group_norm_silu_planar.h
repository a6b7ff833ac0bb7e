// group_norm_silu where the pixels of a channel lie together: a group is one run of memory.
#pragma once

#include "group_norm_silu_activation.h"
#include "group_norm_silu_statistics.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace planar {

constexpr int64_t kAhead = 64;  // channels whose affine maps are made at once

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

template <class T>
FASTDIFF_INLINE float sum_first(const T* x, int64_t n) {
    return sum(n == kPair ? load_pair(x) : load_pair<PartOfPair>(x, n));
}

// Guesses the mean of each group from its first elements.
void start(const GroupNorm& args, int64_t begin, int64_t end) {
    const Sizes& s = args.sizes;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        const int64_t size = s.per_group() * s.pixels, n = s.pixels < kPair ? s.pixels : kPair;
        for (int64_t group = begin; group < end; ++group) {
            args.guess[group] = 0;
            if (kBfloat<T> && !args.small.add) continue;  // 0 is near enough for most, and cheaper
            float total = sum_first(static_cast<const T*>(args.x) + group * size, n);
            if (args.residual) total += sum_first(static_cast<const T*>(args.residual) + group * size, n);
            args.guess[group] = total / n + (args.small.add ? args.small.add[group * s.per_group()] : 0.0f);
        }
    });
}

template <class T, bool joined, bool centered>
FASTDIFF_INLINE void sum_run(
    const GroupNorm& args, int64_t at, int64_t count, float point, GroupSums& total) {
    const Floats one = opaque_one();
    GroupSums sums = total, more = {};
    const auto add = [&](auto piece, int64_t i, int64_t n, GroupSums& to) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair d = taken<T, joined, P>(args, at + i, n);
        if constexpr (centered) {
            for (int j = 0; j < 2; ++j) d.v[j] -= point;
            if constexpr (!P::whole) d = masked<T>(d, n);
        }
        to.add(d, one);
    };
    int64_t i = 0;
    for (; i + 2 * kPair <= count; i += 2 * kPair) {
        add(WholePair{}, i, kPair, sums);
        add(WholePair{}, i + kPair, kPair, more);
    }
    if (i + kPair <= count) add(WholePair{}, i, kPair, sums), i += kPair;
    if (i < count) add(PartOfPair{}, i, count - i, sums);
    sums.merge(more);
    total = sums;
}

template <class T, bool joined>
void sum_units(const GroupNorm& args, int64_t begin, int64_t end) {
    const int64_t per_group = args.sizes.per_group(), size = per_group * args.sizes.pixels;
    for_units(args.sizes, begin, end, [&](int64_t group, int64_t from, int64_t to, int64_t unit) {
        GroupSums sums = {};
        const float guess = args.guess[group];
        if (args.small.add)
            for_channels(args.sizes.pixels, from, to, [&](int64_t c, int64_t at, int64_t count) {
                const float point = guess - args.small.add[group * per_group + c];
                sum_run<T, joined, true>(args, group * size + at, count, point, sums);
            });
        else if (kBfloat<T> && guess == 0)
            sum_run<T, joined, false>(args, group * size + from, to - from, guess, sums);
        else
            sum_run<T, joined, true>(args, group * size + from, to - from, guess, sums);
        args.sums[2 * unit] = FASTDIFF_LEVEL::sum(sums.first);
        args.sums[2 * unit + 1] = FASTDIFF_LEVEL::sum(sums.second);
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
FASTDIFF_INLINE void apply_run(const T* x, T* y, int64_t count, float center, float scale, float shift) {
    for_pairs(count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair v = load_pair<P>(x + i, n);
        for (int j = 0; j < 2; ++j) {
            if constexpr (!kBfloat<T>) v.v[j] -= center;
            v.v[j] = A::template value<T>(v.v[j] * scale + shift);
        }
        store_result<A, P>(y + i, v, n);
    });
}

template <class T, class A>
void apply_part(const GroupNorm& args, int64_t group, int64_t from, int64_t to) {
    const Sizes& s = args.sizes;
    const int64_t per_group = s.per_group(), at = group * per_group * s.pixels;
    const int64_t row = group / s.groups * s.channels, first = group % s.groups * per_group;
    float center[kAhead], scale[kAhead], shift[kAhead];
    int64_t ready = 0, start = 0;
    for_channels(s.pixels, from, to, [&](int64_t c, int64_t offset, int64_t count) {
        if (c >= ready) {
            const int64_t left = (to - 1) / s.pixels + 1 - c, n = left < kAhead ? left : kAhead;
            set_affine<T>(
                args.small, row, first + c, n, args.statistics[group], A::kInput, center, scale, shift);
            start = c, ready = c + n;
        }
        apply_run<T, A>(
            static_cast<const T*>(args.x) + at + offset, static_cast<T*>(args.y) + at + offset, count,
            center[c - start], scale[c - start], shift[c - start]);
    });
}

void apply(const GroupNorm& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            for_units(args.sizes, begin, end, [&](int64_t group, int64_t from, int64_t to, int64_t) {
                apply_part<T, decltype(activation)>(args, group, from, to);
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
