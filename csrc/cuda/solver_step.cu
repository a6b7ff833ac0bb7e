#include "counter.cuh"
#include "divisor.cuh"
#include "images.cuh"
#include "launch.cuh"
#include "solver_row.cuh"
#include "solver_step.h"
#include "vector.cuh"

namespace fastdiff::cuda {
namespace {

// 256 threads of 4 elements: a latent of 4x128x128 becomes 64 blocks, and the eight or so tensors a row can
// read keep up to 128 bytes a thread in flight. Four blocks an SM need 64 registers a thread.
constexpr int kThreads = 256, kLanes = 4, kBlocks = 4;

template <class T, int V>
__device__ __forceinline__ void store_as(
    void* data, void* twin, int64_t at, const Floats<V>& values, float k) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.lane[i] = from_float<T>(k * values.lane[i]);
    static_cast<Pack<T, V>*>(data)[at / V] = pack;
    if (twin) static_cast<Pack<T, V>*>(twin)[at / V] = pack;
}

// The terms of a row beside x and the model's output, loaded together; zeros where the row does not weigh
// them.
template <int V>
struct Terms {
    Floats<V> anchor, history[3];
    Raw<V> noise, uncond;

    __device__ __forceinline__ Terms(const SolverStep& s, const RowWeights& w, int64_t at) {
        anchor = w.b != 0 ? load<V>(s.anchor, at) : Floats<V>{};
#pragma unroll
        for (int j = 0; j < 3; ++j) {
            const float* past = s.ring ? s.ring + w.history[j] : s.history[j];
            history[j] = w.c[j] != 0 ? load<V>(past, at) : Floats<V>{};
        }
        noise = w.n != 0 && s.noise ? load_raw<V>(s.noise, s.noise_type, at) : Raw<V>{};
        uncond = w.g_uncond != 0 ? load_raw<V>(s.uncond, s.output_type, at) : Raw<V>{};
    }
};

template <int V>
__device__ __forceinline__ Floats<V> drawn(
    const SolverStep& s, const RowWeights& w, int64_t sample, int64_t at) {
    const int64_t within = at - sample * s.sample;  // of V elements none crosses a block of four
    const Normals normals = counter_normals(s.seeds[sample], w.stream, within / 4);
    Floats<V> noise;
    if (V == 1) {
        const float* n = normals.value;
        const int place = static_cast<int>(within % 4);
        noise.lane[0] = place < 2 ? (place ? n[1] : n[0]) : (place == 2 ? n[2] : n[3]);
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) noise.lane[i] = normals.value[i];
    }
    return noise;
}

// F = gain*(g*output + g_uncond*uncond).
template <int V>
__device__ __forceinline__ Floats<V> guided(
    const SolverStep& s, const RowWeights& w, int64_t sample, const Raw<V>& output, const Raw<V>& uncond) {
    Floats<V> result = {};
    if (w.g != 0) add(result, w.g, widen(output, s.output_type));
    if (w.g_uncond != 0) add(result, w.g_uncond, widen(uncond, s.output_type));
    if (!s.gain) return result;
    const float gain = s.gain[sample];
#pragma unroll
    for (int i = 0; i < V; ++i) result.lane[i] *= gain;
    return result;
}

// clamp(p*x + q*F, lo, hi), which keeps NaN, and its place in value.
template <int V>
__device__ __forceinline__ Floats<V> value_of(
    const SolverStep& s, const RowWeights& w, int64_t sample, const Floats<V>& x, const Floats<V>& output) {
    Floats<V> value = {};
    if (w.p != 0) add(value, w.p, x);
    if (w.q != 0) add(value, w.q, output);
    if (!w.clamps) return value;
    const float bound = s.bound ? s.bound[sample] : 1.0f;
    const float lo = s.bound ? -bound : w.lo, hi = s.bound ? bound : w.hi;
    const float scale = w.w / bound;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        float data = value.lane[i];
        data = data < lo ? lo : data;
        data = data > hi ? hi : data;
        value.lane[i] = scale * data;
    }
    if (w.u != 0) add(value, w.u, x);
    return value;
}

// mask*x_next + (1 - mask)*(alpha*known + sigma*known_noise); what the mask leaves out need not be finite.
template <int V>
__device__ __forceinline__ void blend(const SolverStep& s, const RowWeights& w, int64_t at, Floats<V>& next) {
    const Floats<V> mask = load<V>(s.mask, at);
    Floats<V> fixed = {};
    const Floats<V> known = w.alpha != 0 ? load<V>(s.known, at) : Floats<V>{};
    const Floats<V> noise = w.sigma != 0 ? load<V>(s.known_noise, at) : Floats<V>{};
    add(fixed, w.alpha, known);
    add(fixed, w.sigma, noise);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float other = mask.lane[i] != 1.0f ? (1.0f - mask.lane[i]) * fixed.lane[i] : 0.0f;
        next.lane[i] = mask.lane[i] != 0.0f ? fmaf(mask.lane[i], next.lane[i], other) : other;
    }
}

template <int V>
__device__ __forceinline__ void finish(
    const SolverStep& s, const RowWeights& w, int64_t at, const Floats<V>& next) {
    store(s.x_next, at, next);
    if (s.anchor_next && w.accept) store(s.anchor_next, at, next);
    if (!s.input) return;
    if (s.input_type == Element::kFloat32) return store_as<float>(s.input, s.input_twin, at, next, w.k);
    if (s.input_type == Element::kFloat16) return store_as<__half>(s.input, s.input_twin, at, next, w.k);
    store_as<__nv_bfloat16>(s.input, s.input_twin, at, next, w.k);
}

// One thread, V elements. x and the model's output, which nearly every row reads, are on their way while
// thread 0 waits for the row.
template <int V, bool kDraws>
__global__ void __launch_bounds__(kThreads, kBlocks)
    solver_step_kernel(const SolverStep s, const Divisor samples) {
    __shared__ Row row;
    __shared__ RowWeights w;
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
    const bool inside = at < s.numel;
    Floats<V> x = {};
    Raw<V> output = {};
    if (inside) {
        x = load<V>(s.x, at);
        if (s.output) output = load_raw<V>(s.output, s.output_type, at);
    }
    read_row(s, row, w);
    if (!inside) return;

    const int64_t sample = s.gain || s.bound || kDraws ? quotient(at, samples) : 0;
    Terms<V> terms(s, w, at);
    Floats<V> next = {}, value = {};
    if (w.call) {
        const Floats<V> both = guided(s, w, sample, output, terms.uncond);
        value = value_of(s, w, sample, x, both);
        if (w.f != 0) add(next, w.f, both);
    }
    if (w.a != 0) add(next, w.a, x);
    add(next, w.b, terms.anchor);
    if (w.c0 != 0) add(next, w.c0, value);
#pragma unroll
    for (int j = 0; j < 3; ++j) add(next, w.c[j], terms.history[j]);
    if (w.n != 0) add(next, w.n, kDraws ? drawn<V>(s, w, sample, at) : widen(terms.noise, s.noise_type));
    if (s.mask) blend(s, w, at, next);
    if (s.ring ? w.call : s.value != nullptr) store(s.ring ? s.ring + w.value : s.value, at, value);
    finish(s, w, at, next);
}

// Whether 4 elements of every tensor lie on a boundary, and no 4 of them in two samples.
bool takes_vectors(const SolverStep& s) {
    const void* floats[] = {s.x,    s.anchor, s.history[0],  s.history[1], s.history[2], s.ring,
                            s.mask, s.known,  s.known_noise, s.x_next,     s.value,      s.anchor_next};
    bool fits = s.sample % kLanes == 0 && s.numel % kLanes == 0;
    for (const void* data : floats) fits = fits && on_boundary(data, kLanes * 4);
    for (const void* data : {s.output, s.uncond})
        fits = fits && on_boundary(data, kLanes * bytes_of(s.output_type));
    for (const void* data : {s.input, s.input_twin})
        fits = fits && on_boundary(data, kLanes * bytes_of(s.input_type));
    return fits && on_boundary(s.noise, kLanes * bytes_of(s.noise_type));
}

template <int V>
cudaError_t launch(const SolverStep& s, cudaStream_t stream) {
    const int64_t blocks = ceil_div(s.numel, kThreads * V);
    const Divisor samples = divisor_of(s.sample);
    if (s.seeds && !s.noise)
        return FASTDIFF_LAUNCH((solver_step_kernel<V, true>), blocks, kThreads, stream, s, samples);
    return FASTDIFF_LAUNCH((solver_step_kernel<V, false>), blocks, kThreads, stream, s, samples);
}

}  // namespace

cudaError_t solver_step(const SolverStep& args, cudaStream_t stream) {
    if (args.numel == 0) return cudaSuccess;
    return takes_vectors(args) ? launch<kLanes>(args, stream) : launch<1>(args, stream);
}

}  // namespace fastdiff::cuda
