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

// Where the lanes hold each channel's distance from: the guess for its group, less what is added to it.
template <class T>
void set_points(const GroupNorm& args, int64_t sample, int64_t group) {
    const Sizes& s = args.sizes;
    const float guess = args.guess[sample * s.groups + group];
    float* points = args.points + sample * s.padded;
    for (int64_t c = group * s.per_group(); c < (group + 1) * s.per_group(); ++c)
        points[place<T>(c)] = args.small.add ? guess - args.small.add[sample * s.channels + c] : guess;
}

// Guesses the mean of each group of the samples from the first pixel.
template <class T>
void guess_sample(const GroupNorm& args, int64_t sample) {
    const Sizes& s = args.sizes;
    const int64_t at = sample * s.pixels * s.channels;
    float* points = args.points + sample * s.padded;
    for_pairs(s.channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        Pair x = load_pair<P>(static_cast<const T*>(args.x) + at + c, n);
        if (args.residual) {
            const Pair other = load_pair<P>(static_cast<const T*>(args.residual) + at + c, n);
            for (int j = 0; j < 2; ++j) x.v[j] += other.v[j];
        }
        store_pair(points + c, x);
    });
    for (int64_t group = 0; group < s.groups; ++group) {
        float total = 0;
        for (int64_t c = group * s.per_group(); c < (group + 1) * s.per_group(); ++c)
            total += points[place<T>(c)] + (args.small.add ? args.small.add[sample * s.channels + c] : 0.0f);
        args.guess[sample * s.groups + group] = total / s.per_group();
    }
    for (int64_t group = 0; group < s.groups; ++group) set_points<T>(args, sample, group);
}

void start(const GroupNorm& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        for (int64_t sample = begin; sample < end; ++sample) guess_sample<decltype(t)>(args, sample);
    });
}

// Adds `rows` pixels of one pair of channels' lanes to its columns.
template <class T, bool joined, class P>
FASTDIFF_INLINE void sum_rows(
    const GroupNorm& args, int64_t at, int64_t rows, int64_t n, const float* points, float* first,
    float* second) {
    const Pair point = load_pair(points);
    Pair one = {}, two = {};
    for (int64_t r = 0; r < rows; ++r) {
        const Pair x = taken<T, joined, P>(args, at + r * args.sizes.channels, n);
        for (int j = 0; j < 2; ++j) {
            const Floats d = x.v[j] - point.v[j];
            one.v[j] += d;
            two.v[j] += d * d;
        }
    }
    const Pair old = load_pair(first), older = load_pair(second);
    for (int j = 0; j < 2; ++j) {
        one.v[j] += old.v[j];
        two.v[j] += older.v[j];
    }
    store_pair(first, one);
    store_pair(second, two);
}

template <class T, bool joined>
void sum_units(const GroupNorm& args, int64_t begin, int64_t end) {
    const int64_t channels = args.sizes.channels, padded = args.sizes.padded;
    for_units(args.sizes, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t unit) {
        const float* points = args.points + sample * padded;
        float* first = args.columns + unit * 2 * padded;
        float* second = first + padded;
        for (int64_t c = 0; c < 2 * padded; ++c) first[c] = 0;
        for (int64_t row = from; row < to; row += kRows) {
            const int64_t at = (sample * args.sizes.pixels + row) * channels;
            for_pairs(channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
                using P = decltype(piece);
                if (row + kRows <= to)
                    sum_rows<T, joined, P>(args, at + c, kRows, n, points + c, first + c, second + c);
                else
                    sum_rows<T, joined, P>(args, at + c, to - row, n, points + c, first + c, second + c);
            });
        }
    });
}

void sum(const GroupNorm& args, int64_t begin, int64_t end) {
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        args.residual ? sum_units<T, true>(args, begin, end) : sum_units<T, false>(args, begin, end);
    });
}

// Sum of a column over the parts and channels of a group.
template <class T>
FASTDIFF_INLINE double sum_columns(const float* columns, const Sizes& s, int64_t stride, int64_t group) {
    double total = 0;
    for (int64_t part = 0; part < s.parts; ++part)
        for (int64_t c = group * s.per_group(); c < (group + 1) * s.per_group(); ++c)
            total += columns[part * stride + place<T>(c)];
    return total;
}

template <class T>
bool finish_sample(const GroupNorm& args, int64_t sample, bool last) {
    const Sizes& s = args.sizes;
    const float* columns = args.columns + sample * s.parts * 2 * s.padded;
    float* affine = args.affine + sample * 3 * s.padded;
    const double count = static_cast<double>(s.per_group()) * s.pixels;
    bool settled = true;
    for (int64_t group = 0; group < s.groups; ++group) {
        const double first = sum_columns<T>(columns, s, 2 * s.padded, group);
        const double second = sum_columns<T>(columns + s.padded, s, 2 * s.padded, group);
        const int64_t at = sample * s.groups + group;
        if (!settle<T>(args, at, count, first, second, last)) {
            settled = false;
            set_points<T>(args, sample, group);
            continue;
        }
        for (int64_t c = group * s.per_group(); c < (group + 1) * s.per_group(); ++c) {
            const Affine a = affine_of<T>(
                args.small, sample * s.channels, c, args.statistics[at].mean, args.statistics[at].rstd);
            float* out = affine + place<T>(c);
            out[0] = a.center, out[s.padded] = a.scale, out[2 * s.padded] = a.shift;
        }
    }
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

void apply(const GroupNorm& args, int64_t begin, int64_t end) {
    const int64_t channels = args.sizes.channels, padded = args.sizes.padded;
    with_dtype(args.dtype, [&](auto t) {
        using T = decltype(t);
        with_activation(args.activation, [&](auto activation) {
            for_units(args.sizes, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t) {
                const float* affine = args.affine + sample * 3 * padded;
                for (int64_t row = from; row < to; ++row) {
                    const int64_t at = (sample * args.sizes.pixels + row) * channels;
                    const T* x = static_cast<const T*>(args.x) + at;
                    T* y = static_cast<T*>(args.y) + at;
                    for_pairs(channels, [&](auto piece, int64_t c, int64_t n) FASTDIFF_INLINE_LAMBDA {
                        using P = decltype(piece);
                        Pair v = load_pair<P>(x + c, n);
                        const Pair center = load_pair(affine + c), scale = load_pair(affine + padded + c);
                        const Pair shift = load_pair(affine + 2 * padded + c);
                        for (int j = 0; j < 2; ++j)
                            v.v[j] =
                                decltype(activation)::value((v.v[j] - center.v[j]) * scale.v[j] + shift.v[j]);
                        store_pair<P>(y + c, v, n);
                    });
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
