#pragma once

#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

template <int unroll>
FASTDIFF_INLINE void add(Tile<unroll>& total, float weight, const Tile<unroll>& term) {
    for (int j = 0; j < unroll; ++j) total.v[j] += weight * term.v[j];
}

template <int unroll>
FASTDIFF_INLINE void clamp(Tile<unroll>& data, float lo, float hi) {  // NaN stays NaN
    const Floats low = splat(lo), high = splat(hi);
    for (int j = 0; j < unroll; ++j) {
        data.v[j] = select(data.v[j] < low, low, data.v[j]);
        data.v[j] = select(data.v[j] > high, high, data.v[j]);
    }
}

template <int unroll>
FASTDIFF_INLINE void scale(Tile<unroll>& tile, float weight) {
    for (int j = 0; j < unroll; ++j) tile.v[j] *= weight;
}

// g*output + g_uncond*uncond, without what is not read.
template <class P, class Output>
FASTDIFF_INLINE Tile<P::unroll> guided(const SolverStep& s, int64_t i, int64_t count) {
    Tile<P::unroll> total = {};
    if (s.output) {
        total = load_tile<P>(static_cast<const Output*>(s.output) + i, count);
        if (s.g != 1) scale(total, s.g);
    }
    if (s.uncond) add(total, s.g_uncond, load_tile<P>(static_cast<const Output*>(s.uncond) + i, count));
    return total;
}

template <class P>
FASTDIFF_INLINE Tile<P::unroll> load_noise(const SolverStep& s, int64_t i, int64_t count) {
    switch (s.noise_dtype) {
        case Dtype::f16:
            return load_tile<P>(static_cast<const Half*>(s.noise) + i, count);
        case Dtype::bf16:
            return load_tile<P>(static_cast<const Bfloat*>(s.noise) + i, count);
        default:
            return load_tile<P>(static_cast<const float*>(s.noise) + i, count);
    }
}

// Where the mask is not 1, what is known takes next's place. Neither counts where its weight is 0, so that
// what is not finite stays where the mask lets it.
template <class P>
FASTDIFF_INLINE void blend(Tile<P::unroll>& next, const SolverStep& s, int64_t i, int64_t count) {
    const auto mask = load_tile<P>(s.mask + i, count);
    Tile<P::unroll> kept = {};
    if (s.known) add(kept, s.alpha, load_tile<P>(s.known + i, count));
    if (s.known_noise) add(kept, s.sigma, load_tile<P>(s.known_noise + i, count));
    for (int j = 0; j < P::unroll; ++j) {
        const Floats other = select(mask.v[j] != 1.0f, (1.0f - mask.v[j]) * kept.v[j], Floats{});
        next.v[j] = select(mask.v[j] != 0.0f, mask.v[j] * next.v[j] + other, other);
    }
}

// Every read of an element comes before its first write: x_next may be x, and value may be a slot of the
// history.
template <class P, class Output, class Input>
FASTDIFF_INLINE void step_tile(const SolverStep& s, int64_t i, int64_t count) {
    Tile<P::unroll> x = {}, next = {}, value = {};
    if (s.x) x = load_tile<P>(s.x + i, count);
    if (s.a != 0) add(next, s.a, x);
    if (s.anchor) add(next, s.b, load_tile<P>(s.anchor + i, count));
    if (s.h1) add(next, s.c1, load_tile<P>(s.h1 + i, count));
    if (s.h2) add(next, s.c2, load_tile<P>(s.h2 + i, count));
    if (s.h3) add(next, s.c3, load_tile<P>(s.h3 + i, count));
    if (s.noise) add(next, s.n, load_noise<P>(s, i, count));
    if (s.call) {
        if (s.p != 0) add(value, s.p, x);
        if (s.output || s.uncond) {
            const auto output = guided<P, Output>(s, i, count);
            if (s.q != 0) add(value, s.q, output);
            if (s.f != 0) add(next, s.f, output);
        }
        if (s.clamps) {
            if (s.w != 1) scale(value, s.w);
            clamp(value, s.lo, s.hi);
        }
        if (s.u != 0) add(value, s.u, x);
        if (s.c0 != 0) add(next, s.c0, value);
        if (s.value) store_tile<P>(s.value + i, value, count);
    }
    if (s.mask) blend<P>(next, s, i, count);
    store_tile<P>(s.x_next + i, next, count);
    if (s.anchor_next) store_tile<P>(s.anchor_next + i, next, count);
    if (!s.input) return;
    for (int j = 0; j < P::unroll; ++j) next.v[j] *= s.k;
    store_tile<P>(static_cast<Input*>(s.input) + i, next, count);
    if (s.input_twin) store_tile<P>(static_cast<Input*>(s.input_twin) + i, next, count);
}

template <class Output, class Input>
void step_range(const SolverStep& args, int64_t begin, int64_t end) {
    const SolverStep s = args;  // a local copy: stores through float* cannot alias it
    for_pieces(begin, end, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
        step_tile<decltype(piece), Output, Input>(s, i, count);
    });
}

template <class Output>
void step_range(const SolverStep& args, int64_t begin, int64_t end) {
    switch (args.input_dtype) {
        case Dtype::f32:
            return step_range<Output, float>(args, begin, end);
        case Dtype::f16:
            return step_range<Output, Half>(args, begin, end);
        case Dtype::bf16:
            return step_range<Output, Bfloat>(args, begin, end);
    }
}

void step_dtypes(const SolverStep& args, int64_t begin, int64_t end) {
    switch (args.output_dtype) {
        case Dtype::f32:
            return step_range<float>(args, begin, end);
        case Dtype::f16:
            return step_range<Half>(args, begin, end);
        case Dtype::bf16:
            return step_range<Bfloat>(args, begin, end);
    }
}

// What has no weight is left out, whatever it would be multiplied by.
FASTDIFF_INLINE float product(double weight, double factor) { return weight != 0 ? weight * factor : 0.0; }

// The row with one sample's gain and bound multiplied in.
SolverStep for_sample(SolverStep s, int64_t sample) {
    const double gain = s.gain ? s.gain[sample] : 1.0;
    s.q = product(s.exact.q, gain);
    s.f = product(s.exact.f, gain);
    s.w = s.bound ? s.exact.w / s.bound[sample] : s.exact.w;
    return s;
}

void solver_step(const SolverStep& args, int64_t begin, int64_t end) {
    if (!args.gain && !args.bound) return step_dtypes(for_sample(args, 0), begin, end);
    while (begin < end) {
        const int64_t sample = begin / args.sample_size;
        const int64_t next = (sample + 1) * args.sample_size;
        const int64_t stop = next < end ? next : end;
        step_dtypes(for_sample(args, sample), begin, stop);
        begin = stop;
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
