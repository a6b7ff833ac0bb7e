#include "images.cuh"
#include "launch.cuh"
#include "rescale_gain.h"
#include "solver_row.cuh"

namespace fastdiff::cuda {
namespace {

// Four vectors of either output in flight a thread, 32 to 64 bytes of each. At 64 registers a multiprocessor
// holds two of these blocks.
constexpr int kThreads = 512, kLanes = 4, kUnroll = 4, kMostBlocks = 256;
constexpr int64_t kOneBlock = 65536;  // elements for which a second launch would cost more than it saves

// Chan's combination, in an order fixed by the indices of threads and blocks: results repeat bit for bit.
__device__ __forceinline__ void merge(Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (b.count == 0) return;
    const float share = b.count / count, weight = a.count * share;
    const float step = b.mean - a.mean, guided_step = b.guided_mean - a.guided_mean;
    a.mean = fmaf(step, share, a.mean);
    a.guided_mean = fmaf(guided_step, share, a.guided_mean);
    a.squares += fmaf(step * step, weight, b.squares);
    a.guided_squares += fmaf(guided_step * guided_step, weight, b.guided_squares);
    a.count = count;
}

template <int V>
__device__ __forceinline__ void moments_of(const Floats<V>& values, float& mean, float& squares) {
    const float first = values.lane[0];  // taken off, so that equal values have no deviation at all
    float sum = 0;
#pragma unroll
    for (int i = 1; i < V; ++i) sum += values.lane[i] - first;
    mean = first + sum / V;
    squares = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float off = values.lane[i] - mean;
        squares = fmaf(off, off, squares);
    }
}

template <int V>
__device__ __forceinline__ Moments
of_vector(const RescaleGain& r, const GuidedWeights& w, const Raw<V>& output, const Raw<V>& uncond) {
    const Floats<V> cond = widen(output, r.type);
    Floats<V> guided = {};
    if (w.g != 0) add(guided, w.g, cond);
    if (w.g_uncond != 0) add(guided, w.g_uncond, widen(uncond, r.type));
    Moments m;
    m.count = V;
    moments_of(cond, m.mean, m.squares);
    moments_of(guided, m.guided_mean, m.guided_squares);
    return m;
}

// Those of the thread's elements from `at` to `last`, a block's width of vectors apart.
template <int V>
__device__ __forceinline__ Moments
of_thread(const RescaleGain& r, const GuidedWeights& w, int64_t at, int64_t last) {
    Moments total = {};
    for (; at < last; at += kUnroll * kThreads * V) {
        Raw<V> output[kUnroll], uncond[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t here = at + u * kThreads * V;
            if (here < last) output[u] = load_raw<V>(r.output, r.type, here);
            uncond[u] = here < last && w.g_uncond != 0 ? load_raw<V>(r.uncond, r.type, here) : Raw<V>{};
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
            if (at + u * kThreads * V < last) merge(total, of_vector<V>(r, w, output[u], uncond[u]));
    }
    return total;
}

__device__ __forceinline__ Moments from_lane(const Moments& m, unsigned below) {
    constexpr unsigned kAll = 0xFFFFFFFFu;
    return {
        __shfl_down_sync(kAll, m.count, below),          __shfl_down_sync(kAll, m.mean, below),
        __shfl_down_sync(kAll, m.squares, below),        __shfl_down_sync(kAll, m.guided_mean, below),
        __shfl_down_sync(kAll, m.guided_squares, below),
    };
}

// Lane 0 gets those of the whole warp.
__device__ __forceinline__ void merge_warp(Moments& m) {
#pragma unroll
    for (unsigned step = 16; step > 0; step /= 2) {
        const Moments other = from_lane(m, step);
        merge(m, other);
    }
}

__device__ __forceinline__ float gain_of(const Moments& m, float rescale) {
    if (m.count != m.count) return m.count;
    const float found = sqrtf(m.guided_squares / m.count), wanted = sqrtf(m.squares / m.count);
    return found > 0 ? fmaf(rescale, wanted / found, 1.0f - rescale) : 1.0f;
}

template <int V>
__global__ void __launch_bounds__(kThreads, 2) rescale_gain_kernel(const RescaleGain r, const int64_t share) {
    __shared__ Row row;
    __shared__ GuidedWeights w;
    __shared__ Moments warps[kThreads / 32];
    read_guided(r.table, r.rows, r.index, false, r.uncond, row, w);
    const int64_t sample = blockIdx.x / r.blocks, from = blockIdx.x % r.blocks * share;
    const int64_t start = sample * r.sample, stop = from + share < r.sample ? from + share : r.sample;
    Moments m = of_thread<V>(r, w, start + from + static_cast<int64_t>(threadIdx.x) * V, start + stop);
    merge_warp(m);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = m;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    m = threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : Moments{};
    merge_warp(m);
    if (threadIdx.x != 0) return;
    if (w.p != w.p) m.count = not_a_number();  // the row is not there, or what it weighs
    if (r.blocks > 1)
        r.scratch[blockIdx.x] = m;
    else
        r.gain[sample] = gain_of(m, r.rescale);
}

// A warp a sample.
__global__ void __launch_bounds__(32) rescale_gain_finish(const RescaleGain r) {
    const Moments* parts = r.scratch + static_cast<int64_t>(blockIdx.x) * r.blocks;
    Moments m = {};
    for (int i = static_cast<int>(threadIdx.x); i < r.blocks; i += 32) merge(m, parts[i]);
    merge_warp(m);
    if (threadIdx.x == 0) r.gain[blockIdx.x] = gain_of(m, r.rescale);
}

template <int V>
cudaError_t launch(const RescaleGain& r, cudaStream_t stream) {
    const int64_t share = ceil_div(ceil_div(r.sample, r.blocks), kLanes) * kLanes;
    const cudaError_t error =
        FASTDIFF_LAUNCH(rescale_gain_kernel<V>, r.batch * r.blocks, kThreads, stream, r, share);
    if (error != cudaSuccess || r.blocks == 1) return error;
    return FASTDIFF_LAUNCH(rescale_gain_finish, r.batch, 32, stream, r);
}

}  // namespace

int rescale_gain_blocks(int64_t batch, int64_t sample, int multiprocessors) {
    if (sample <= kOneBlock) return 1;
    const int64_t wanted = ceil_div(sample, kOneBlock / 4), room = ceil_div(2 * multiprocessors, batch);
    const int64_t most = wanted < room ? wanted : room;
    return static_cast<int>(most < kMostBlocks ? most : kMostBlocks);
}

cudaError_t rescale_gain(const RescaleGain& args, cudaStream_t stream) {
    if (args.batch == 0) return cudaSuccess;
    const int bytes = kLanes * bytes_of(args.type);
    const bool vectors =
        args.sample % kLanes == 0 && on_boundary(args.output, bytes) && on_boundary(args.uncond, bytes);
    return vectors ? launch<kLanes>(args, stream) : launch<1>(args, stream);
}

}  // namespace fastdiff::cuda
