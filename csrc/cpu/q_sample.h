#pragma once

#include "fused.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// v as a T holds it.
FASTDIFF_INLINE Floats rounded(Floats v, float) { return v; }
template <class T>
FASTDIFF_INLINE Floats rounded(Floats v, T) {
    return widen(narrow(v, T{}), T{});
}

// Stores past the caches: without reading the line first. p is aligned to the size of what is stored.
FASTDIFF_INLINE void stream(float* p, Floats v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
    _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#else
    store(p, v);
#endif
}
template <class T>
FASTDIFF_INLINE void stream(T* p, Floats v) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(narrow(v, T{})));
#elif defined(__AVX2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(narrow(v, T{})));
#else
    store(p, v);
#endif
}

FASTDIFF_INLINE void finish_streams() {
#if defined(__AVX2__)
    _mm_sfence();  // before other threads may read
#endif
}

template <class P, class T>
FASTDIFF_INLINE void put(T* p, const Tile<P::unroll>& tile, int64_t count, bool streams) {
    constexpr uintptr_t kAlign = kLanes * sizeof(T);
    if (P::whole && streams && reinterpret_cast<uintptr_t>(p) % kAlign == 0) {
        for (int j = 0; j < P::unroll; ++j) stream(p + j * kLanes, tile.v[j]);
    } else {
        store_tile<P>(p, tile, count);
    }
}

template <class P, class T>
FASTDIFF_INLINE void q_sample_tile(
    const QSample& s, const float* drawn, float alpha, float sigma, int64_t i, int64_t count) {
    Tile<P::unroll> noise;
    if (drawn) {
        noise = load_tile<P>(drawn, count);
        for (int j = 0; j < P::unroll; ++j) noise.v[j] = rounded(noise.v[j], T{});
        put<P>(static_cast<T*>(s.noise) + i, noise, count, s.streams);
        if (!s.x) return;
    } else {
        noise = load_tile<P>(static_cast<const T*>(s.noise) + i, count);
    }
    const auto x0 = load_tile<P>(static_cast<const T*>(s.x0) + i, count);
    const Floats a = splat(alpha), b = splat(sigma);
    Tile<P::unroll> out;
    for (int j = 0; j < P::unroll; ++j) out.v[j] = weighted(a, x0.v[j], b, noise.v[j]);
    put<P>(static_cast<T*>(s.x) + i, out, count, s.streams);
    if (!s.velocity) return;
    for (int j = 0; j < P::unroll; ++j) out.v[j] = weighted(a, noise.v[j], -b, x0.v[j]);
    put<P>(static_cast<T*>(s.velocity) + i, out, count, s.streams);
}

template <class T>
void q_sample_of(const QSample& args, const float* drawn, int64_t begin, int64_t end) {
    const QSample s = args;  // a local copy: stores cannot alias it
    int64_t i = begin;
    while (i < end) {
        int64_t sample = 0, stop = end;
        if (s.alpha_step | s.sigma_step) {
            sample = i / s.sample_size;
            stop = (sample + 1) * s.sample_size < end ? (sample + 1) * s.sample_size : end;
        }
        const float alpha = s.x ? s.alpha[sample * s.alpha_step] : 0.0f;
        const float sigma = s.x ? s.sigma[sample * s.sigma_step] : 0.0f;
        for_pieces(i, stop, [&](auto piece, int64_t at, int64_t count) FASTDIFF_INLINE_LAMBDA {
            const float* values = drawn ? drawn + (at - begin) : nullptr;
            q_sample_tile<decltype(piece), T>(s, values, alpha, sigma, at, count);
        });
        i = stop;
    }
    if (s.streams) finish_streams();
}

void q_sample(const QSample& args, const float* drawn, int64_t begin, int64_t end) {
    switch (args.dtype) {
        case Dtype::f32:
            return q_sample_of<float>(args, drawn, begin, end);
        case Dtype::f16:
            return q_sample_of<Half>(args, drawn, begin, end);
        case Dtype::bf16:
            return q_sample_of<Bfloat>(args, drawn, begin, end);
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
