// Statistics: each block of 4096 elements (in cache) gets its squared deviations from a point near its mean,
// and the blocks are merged in float64 by Chan's formula. Never E[x^2] - E[x]^2: at mean 1000 it would lose
// the variance.
#pragma once

#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

struct Moments {
    double count = 0, mean = 0, squares = 0;  // squares: sum of squared deviations from the mean

    void merge(double n, double m, double s) {
        const double total = count + n, delta = m - mean;
        mean += delta * (n / total);
        squares += s + delta * delta * (count * n / total);
        count = total;
    }
};

template <class T>
float average(const T* p, int64_t size) {
    Tile<kUnroll> total = {};
    for_pieces(0, size, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        const auto x = load_tile<P>(p + i, count);  // past the end: 0
        for (int j = 0; j < P::unroll; ++j) total.v[j] += x.v[j];
    });
    return sum((total.v[0] + total.v[1]) + (total.v[2] + total.v[3])) / size;
}

// Mean and squared deviations, computed from the distances to a point near the mean.
template <class T>
Moments moments_around(const T* p, int64_t size, float point) {
    Tile<kUnroll> first = {}, second = {};
    for_pieces(0, size, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        auto x = load_tile<P>(p + i, count);
        if constexpr (!P::whole)
            for (int64_t e = count; e < kLanes; ++e) x.v[0][e] = point;  // past the end: no distance
        for (int j = 0; j < P::unroll; ++j) {
            const Floats d = x.v[j] - point;
            first.v[j] += d;
            second.v[j] += d * d;
        }
    });
    const double rest = sum((first.v[0] + first.v[1]) + (first.v[2] + first.v[3]));
    const double squares = sum((second.v[0] + second.v[1]) + (second.v[2] + second.v[3]));
    Moments m;
    m.count = size;
    m.mean = point + rest / size;
    m.squares = squares - rest * rest / size;
    return m;
}

// One pass where the mean of what came before is within four deviations of this block's, else two.
template <class T>
Moments block_moments(const T* p, int64_t size, const Moments& before) {
    if (before.count != 0) {
        const float guess = static_cast<float>(before.mean);
        const Moments m = moments_around(p, size, guess);
        const double off = m.mean - guess;
        if (off * off * size <= 16 * m.squares) return m;
    }
    return moments_around(p, size, average(p, size));
}

template <class T>
void widen_range(const void* p, int64_t first, int64_t count, float* out) {
    const T* from = static_cast<const T*>(p) + first;
    for_pieces(0, count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
        using P = decltype(piece);
        store_tile<P>(out + i, load_tile<P>(from + i, n), n);
    });
}

// Channels [first, first + count) of weight or bias as float32, or `missing` where there is none.
inline void affine(const void* p, Dtype dtype, int64_t first, int64_t count, float missing, float* out) {
    if (!p) {
        for (int64_t c = 0; c < count; ++c) out[c] = missing;
        return;
    }
    switch (dtype) {
        case Dtype::f32:
            return widen_range<float>(p, first, count, out);
        case Dtype::f16:
            return widen_range<Half>(p, first, count, out);
        case Dtype::bf16:
            return widen_range<Bfloat>(p, first, count, out);
    }
}

// y = silu((x - mean)*scale + shift) for the channels of one group: mean is rounded to float32, and shift
// makes up for it.
inline void scales(
    const GroupNormSilu& args, double mean, float rstd, int64_t first, int64_t count, float* scale,
    float* shift) {
    affine(args.weight, args.weight_dtype, first, count, 1.0f, scale);
    affine(args.bias, args.bias_dtype, first, count, 0.0f, shift);
    const float rest = static_cast<float>(mean - static_cast<float>(mean));
    for (int64_t c = 0; c < count; ++c) {
        scale[c] *= rstd;
        shift[c] -= rest * scale[c];
    }
}

// Writes the group's mean and rstd, and returns rstd.
inline float finish(const GroupNormSilu& args, const Moments& m, int64_t group) {
    args.mean[group] = static_cast<float>(m.mean);
    return args.rstd[group] = static_cast<float>(1.0 / __builtin_sqrt(m.squares / m.count + args.eps));
}

template <class T>
void group_norm_silu_of(const GroupNormSilu& args, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = 4096, kAhead = 64;
    float scale[kAhead], shift[kAhead];
    const int64_t per_group = args.channels / args.groups, size = per_group * args.size;
    for (int64_t group = begin; group < end; ++group) {
        const T* x = static_cast<const T*>(args.x) + group * size;
        T* y = static_cast<T*>(args.y) + group * size;
        Moments m;
        for (int64_t i = 0; i < size; i += kBlock) {
            const Moments block = block_moments(x + i, size - i < kBlock ? size - i : kBlock, m);
            m.merge(block.count, block.mean, block.squares);
        }
        const float mean = static_cast<float>(m.mean), rstd = finish(args, m, group);
        const int64_t first = group % args.groups * per_group;
        for (int64_t c = 0; c < per_group; ++c) {
            if (c % kAhead == 0)
                scales(
                    args, m.mean, rstd, first + c, per_group - c < kAhead ? per_group - c : kAhead, scale,
                    shift);
            const float a = scale[c % kAhead], b = shift[c % kAhead];
            for_pieces(
                c * args.size, (c + 1) * args.size,
                [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
                    using P = decltype(piece);
                    auto t = load_tile<P>(x + i, count);
                    for (int j = 0; j < P::unroll; ++j) t.v[j] = silu((t.v[j] - mean) * a + b);
                    store_tile<P>(y + i, t, count);
                });
        }
    }
}

// --- channels last: moments of each channel over a chunk of pixels, then of each group, then the values ---

template <class P, class T>
FASTDIFF_INLINE void column_moments(
    const T* x, int64_t stride, int64_t rows, double before, double* mean, double* squares, int64_t count) {
    Tile<P::unroll> total = {}, first = {}, second = {};
    for (int64_t r = 0; r < rows; ++r) {
        const auto t = load_tile<P>(x + r * stride, count);
        for (int j = 0; j < P::unroll; ++j) total.v[j] += t.v[j];
    }
    for (int j = 0; j < P::unroll; ++j) total.v[j] /= static_cast<float>(rows);
    for (int64_t r = 0; r < rows; ++r) {
        const auto t = load_tile<P>(x + r * stride, count);
        for (int j = 0; j < P::unroll; ++j) {
            const Floats d = t.v[j] - total.v[j];
            first.v[j] += d;
            second.v[j] += d * d;
        }
    }
    using Whole = Piece<P::unroll, true>;
    float means[kTile], rests[kTile], sums[kTile];
    store_tile<Whole>(means, total, kTile);
    store_tile<Whole>(rests, first, kTile);
    store_tile<Whole>(sums, second, kTile);
    const double n = rows, all = before + n, part = 1.0 / n, share = n / all, spread = before * n / all;
    for (int64_t c = 0; c < count; ++c) {
        const double rest = rests[c], m = means[c] + rest * part, delta = m - mean[c];
        mean[c] += delta * share;
        squares[c] += sums[c] - rest * rest * part + delta * delta * spread;
    }
}

template <class T>
void moments_of(const GroupNormSilu& args, int64_t begin, int64_t end) {
    constexpr int64_t kRows = 64;
    const int64_t channels = args.channels;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t sample = unit / args.chunks, from = unit % args.chunks * args.chunk;
        const int64_t to = from + args.chunk < args.size ? from + args.chunk : args.size;
        const T* x = static_cast<const T*>(args.x) + sample * args.size * channels;
        double* mean = args.moments + unit * 2 * channels;
        double* squares = mean + channels;
        for (int64_t c = 0; c < 2 * channels; ++c) mean[c] = 0;
        for (int64_t row = from; row < to; row += kRows) {
            const int64_t rows = to - row < kRows ? to - row : kRows;
            for_pieces(0, channels, [&](auto piece, int64_t c, int64_t count) FASTDIFF_INLINE_LAMBDA {
                column_moments<decltype(piece)>(
                    x + row * channels + c, channels, rows, static_cast<double>(row - from), mean + c,
                    squares + c, count);
            });
        }
    }
}

void channels_last_moments(const GroupNormSilu& args, int64_t begin, int64_t end) {
    switch (args.dtype) {
        case Dtype::f32:
            return moments_of<float>(args, begin, end);
        case Dtype::f16:
            return moments_of<Half>(args, begin, end);
        case Dtype::bf16:
            return moments_of<Bfloat>(args, begin, end);
    }
}

// Chan's formula for many parts at once: the mean of the means, then each part's distance from it.
inline Moments merged(const GroupNormSilu& args, int64_t sample, int64_t first, int64_t count) {
    Moments m;
    m.count = static_cast<double>(count) * args.size;
    for (int pass = 0; pass < 2; ++pass)
        for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
            const double* means = args.moments + (sample * args.chunks + chunk) * 2 * args.channels + first;
            const int64_t rest = args.size - chunk * args.chunk;
            const double pixels = static_cast<double>(rest < args.chunk ? rest : args.chunk);
            double total = 0;
            if (pass == 0) {
                for (int64_t c = 0; c < count; ++c) total += means[c];
                m.mean += total * pixels / m.count;
            } else {
                for (int64_t c = 0; c < count; ++c) {
                    const double delta = means[c] - m.mean;
                    total += means[args.channels + c] + pixels * delta * delta;
                }
                m.squares += total;
            }
        }
    return m;
}

void channels_last_groups(const GroupNormSilu& args, int64_t begin, int64_t end) {
    const int64_t channels = args.channels, per_group = channels / args.groups;
    for (int64_t group = begin; group < end; ++group) {
        const int64_t sample = group / args.groups, first = group % args.groups * per_group;
        const Moments m = merged(args, sample, first, per_group);
        const float mean = static_cast<float>(m.mean), rstd = finish(args, m, group);
        float* out = args.normalise + sample * 3 * channels + first;
        for (int64_t c = 0; c < per_group; ++c) out[c] = mean;
        scales(args, m.mean, rstd, first, per_group, out + channels, out + 2 * channels);
    }
}

template <class T>
void apply_of(const GroupNormSilu& args, int64_t begin, int64_t end) {
    const int64_t channels = args.channels;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t sample = unit / args.chunks, from = unit % args.chunks * args.chunk;
        const int64_t to = from + args.chunk < args.size ? from + args.chunk : args.size;
        const float* mean = args.normalise + sample * 3 * channels;
        for (int64_t row = from; row < to; ++row) {
            const int64_t offset = (sample * args.size + row) * channels;
            const T* x = static_cast<const T*>(args.x) + offset;
            T* y = static_cast<T*>(args.y) + offset;
            for_pieces(0, channels, [&](auto piece, int64_t c, int64_t count) FASTDIFF_INLINE_LAMBDA {
                using P = decltype(piece);
                auto t = load_tile<P>(x + c, count);
                const auto center = load_tile<P>(mean + c, count);
                const auto scale = load_tile<P>(mean + channels + c, count);
                const auto shift = load_tile<P>(mean + 2 * channels + c, count);
                for (int j = 0; j < P::unroll; ++j)
                    t.v[j] = silu((t.v[j] - center.v[j]) * scale.v[j] + shift.v[j]);
                store_tile<P>(y + c, t, count);
            });
        }
    }
}

void channels_last_apply(const GroupNormSilu& args, int64_t begin, int64_t end) {
    switch (args.dtype) {
        case Dtype::f32:
            return apply_of<float>(args, begin, end);
        case Dtype::f16:
            return apply_of<Half>(args, begin, end);
        case Dtype::bf16:
            return apply_of<Bfloat>(args, begin, end);
    }
}

void group_norm_silu(const GroupNormSilu& args, int64_t begin, int64_t end) {
    switch (args.dtype) {
        case Dtype::f32:
            return group_norm_silu_of<float>(args, begin, end);
        case Dtype::f16:
            return group_norm_silu_of<Half>(args, begin, end);
        case Dtype::bf16:
            return group_norm_silu_of<Bfloat>(args, begin, end);
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
