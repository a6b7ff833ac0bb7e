// group_norm_silu where the channels of a pixel lie together: lanes are channels.
#pragma once

#include "group_norm_silu_activation.h"
#include "group_norm_silu_statistics.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {
namespace channels_last {

constexpr int64_t kRows = 8;  // pixels that are summed up in registers

// Calls body(sample, from, to, unit) for each of the units [begin, end), parts of samples.
template <class Body>
FASTDIFF_INLINE void for_units(const Sizes& sizes, int64_t begin, int64_t end, const Body& body) {
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t from = unit % sizes.parts * sizes.part, to = from + sizes.part;
        body(unit / sizes.parts, from, to < sizes.pixels ? to : sizes.pixels, unit);
    }
}

// What the lanes' distances are from: the guess for the channel's group, less what is added to it.
template <class T>
void set_points(const GroupNorm& args, int64_t sample) {
    const Sizes& s = args.sizes;
    const float* guess = args.guess + sample * s.groups;
    const float* add = args.small.add ? args.small.add + sample * s.channels : nullptr;
    float* points = args.points + sample * s.padded;
    for (int64_t group = 0, c = 0; group < s.groups; ++group)
        for (const int64_t end = c + s.per_group(); c < end; ++c)
            points[place<T>(c)] = add ? guess[group] - add[c] : guess[group];
}

// Whether a sample's distances are from points, not from 0.
template <class T>
bool is_centered(const GroupNorm& args, int64_t sample) {
    bool centered = !kBfloat<T> || args.small.add;
    for (int64_t group = 0; group < args.sizes.groups && !centered; ++group)
        centered = args.guess[sample * args.sizes.groups + group] != 0;
    return centered;
}

// Guesses the mean of each group of the sample from some channels of the first pixel; for bfloat16, 0 is near
// enough for most, and cheaper.
template <class T>
void guess_sample(const GroupNorm& args, int64_t sample) {
    const Sizes& s = args.sizes;
    const int64_t at = sample * s.pixels * s.channels, few = kLanes < 8 ? kLanes : 8;
    const int64_t n = s.per_group() < few ? s.per_group() : few;
    for (int64_t group = 0; group < s.groups; ++group) {
        float total = 0;
        if (!kBfloat<T> || args.small.add) {
            const int64_t first = group * s.per_group();
            const Pair x = load_pair<PartOfPair>(static_cast<const T*>(args.x) + at + first, n);
            total = FASTDIFF_LEVEL::sum(x) / n;
            if (args.small.add) total += args.small.add[sample * s.channels + first];
        }
        args.guess[sample * s.groups + group] = total;
    }
    if (is_centered<T>(args, sample)) set_points<T>(args, sample);
}

void start(const GroupNorm& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        for (int64_t sample = begin; sample < end; ++sample) guess_sample<decltype(t)>(args, sample);
    });
}

// Adds `rows` pixels of one pair of channels' lanes to its columns.
template <class T, bool joined, bool centered, class P>
FASTDIFF_INLINE void sum_rows(
    const GroupNorm& args, int64_t at, int64_t rows, int64_t n, const float* points, float* columns,
    Floats one) {
    const int64_t padded = args.sizes.padded;
    const Pair point = load_pair(points);
    GroupSums sums = {};  // not the columns: in a long chain of additions each would lose more
    for (int64_t r = 0; r < rows; ++r) {
        prefetch_pair(static_cast<const T*>(args.x) + at + (r + kRows) * args.sizes.channels);
        Pair d = taken<T, joined, P>(args, at + r * args.sizes.channels, n);
        if constexpr (centered)
            for (int j = 0; j < 2; ++j) d.v[j] -= point.v[j];
        sums.add(d, one);
    }
    sums.merge({load_pair(columns), load_pair(columns + padded)});
    store_pair(columns, sums.first);
    store_pair(columns + padded, sums.second);
}

template <class T, bool joined, bool centered>
void sum_part(const GroupNorm& args, int64_t sample, int64_t from, int64_t to, float* columns) {
    const int64_t channels = args.sizes.channels;
    const float* points = args.points + sample * args.sizes.padded;
    const Floats one = opaque_one();
    for (int64_t c = 0; c < 2 * args.sizes.padded; ++c) columns[c] = 0;
    for (int64_t row = from; row < to; row += kRows) {
        const int64_t at = (sample * args.sizes.pixels + row) * channels;
        for_pairs(channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
            using P = decltype(piece);
            if (row + kRows <= to)
                sum_rows<T, joined, centered, P>(args, at + c, kRows, n, points + c, columns + c, one);
            else
                sum_rows<T, joined, centered, P>(args, at + c, to - row, n, points + c, columns + c, one);
        });
    }
}

template <class T, bool joined>
void sum_units(const GroupNorm& args, int64_t begin, int64_t end) {
    for_units(args.sizes, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t unit) {
        float* columns = args.columns + unit * 2 * args.sizes.padded;
        if (is_centered<T>(args, sample))
            sum_part<T, joined, true>(args, sample, from, to, columns);
        else if constexpr (kBfloat<T>)
            sum_part<T, joined, false>(args, sample, from, to, columns);
    });
}

void sum(const GroupNorm& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        args.residual ? sum_units<T, true>(args, begin, end) : sum_units<T, false>(args, begin, end);
    });
}

// GroupSums the parts of a sample up, in totals [2, padded], by channel.
template <class T>
void sum_parts(const GroupNorm& args, int64_t sample, double* totals) {
    typedef double Doubles __attribute__((vector_size(kLanes * 8)));
    const int64_t size = 2 * args.sizes.padded;
    const float* columns = args.columns + sample * args.sizes.parts * size;
    for (int64_t c = 0; c < size; c += kPair) {
        Doubles pair[2] = {};
        for (int64_t part = 0; part < args.sizes.parts; ++part)
            for (int j = 0; j < 2; ++j)
                pair[j] += __builtin_convertvector(load(columns + part * size + c + j * kLanes), Doubles);
        for (int i = 0; i < kLanes; ++i) {
            totals[c + (kBfloat<T> ? 2 * i : i)] = pair[0][i];
            totals[c + (kBfloat<T> ? 2 * i + 1 : kLanes + i)] = pair[1][i];
        }
    }
}

inline double sum_group(const double* totals, int64_t count) {
    double total[4] = {};
    int64_t c = 0;
    for (; c + 4 <= count; c += 4)
        for (int j = 0; j < 4; ++j) total[j] += totals[c + j];
    for (; c < count; ++c) total[0] += totals[c];
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// Moves bfloat16's affine maps from the order of channels to where the lanes expect them.
inline void split(const float* from, int64_t padded, float* to) {
    for (int64_t c = 0; c < padded; c += kPair)
        for (int i = 0; i < kLanes; ++i)
            to[c + i] = from[c + 2 * i], to[c + kLanes + i] = from[c + 2 * i + 1];
}

// The affine maps of a sample's channels.
template <class T>
void set_affines(const GroupNorm& args, int64_t sample) {
    const Sizes& s = args.sizes;
    const float input = input_factor(args.activation);
    float* affine = args.affine + sample * 5 * s.padded;
    float* out = affine + (kBfloat<T> ? 2 * s.padded : 0);
    for (int64_t group = 0; group < s.groups; ++group) {
        const int64_t c = group * s.per_group();
        set_affine<T>(
            args.small, sample * s.channels, c, s.per_group(), args.statistics[sample * s.groups + group],
            input, out + c, out + s.padded + c, out + 2 * s.padded + c);
    }
    if constexpr (kBfloat<T>) {
        split(out + s.padded, s.padded, affine + s.padded);
        split(out + 2 * s.padded, s.padded, affine + 2 * s.padded);
    }
}

template <class T>
bool finish_sample(const GroupNorm& args, int64_t sample, bool last) {
    const Sizes& s = args.sizes;
    const double count = static_cast<double>(s.per_group()) * s.pixels;
    double* totals = args.sums + sample * 2 * s.padded;
    sum_parts<T>(args, sample, totals);
    bool settled = true;
    for (int64_t group = 0; group < s.groups; ++group) {
        const double* of_group = totals + group * s.per_group();
        const double first = sum_group(of_group, s.per_group());
        const double second = sum_group(of_group + s.padded, s.per_group());
        settled &= settle<T>(args, sample * s.groups + group, count, first, second, last);
    }
    if (settled)
        set_affines<T>(args, sample);
    else
        set_points<T>(args, sample);
    return settled;
}

bool finish(const GroupNorm& args, int64_t begin, int64_t end, bool last) {
    return with_dtype(args.dtype, [&](auto t) {
        bool settled = true;
        for (int64_t sample = begin; sample < end; ++sample)
            settled &= finish_sample<decltype(t)>(args, sample, last);
        return settled;
    });
}

template <class T, class A>
FASTDIFF_INLINE void apply_row(const T* x, T* y, int64_t channels, const float* affine, int64_t padded) {
    for_pairs(channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair v = load_pair<P>(x + c, n);
        if constexpr (!kBfloat<T>) {
            const Pair center = load_pair(affine + c);
            for (int j = 0; j < 2; ++j) v.v[j] -= center.v[j];
        }
        const Pair scale = load_pair(affine + padded + c), shift = load_pair(affine + 2 * padded + c);
        for (int j = 0; j < 2; ++j) v.v[j] = A::template value<T>(v.v[j] * scale.v[j] + shift.v[j]);
        store_result<A, P>(y + c, v, n);
    });
}

void apply(const GroupNorm& args, int64_t begin, int64_t end) {
    const int64_t channels = args.sizes.channels, padded = args.sizes.padded;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            for_units(args.sizes, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t) {
                const float* affine = args.affine + sample * 5 * padded;
                for (int64_t row = from; row < to; ++row) {
                    const int64_t at = (sample * args.sizes.pixels + row) * channels;
                    const T* x = static_cast<const T*>(args.x) + at;
                    apply_row<T, decltype(activation)>(
                        x, static_cast<T*>(args.y) + at, channels, affine, padded);
                }
            });
        });
    });
}

void run(const GroupNorm& args, int64_t begin, int64_t end);

constexpr Phases<GroupNorm> phases = {run, start, sum, finish, apply};

void run(const GroupNorm& args, int64_t begin, int64_t end) {
    run_phases(phases, args, begin, end, after_sum);
}

}  // namespace channels_last
}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
