#include "add_noise.h"
#include "launch.cuh"
#include "load_weight.cuh"
#include "vector.cuh"

namespace fastdiff::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;  // vectors a thread has in flight from each input
// Shorter samples would leave most of a block idle, so they share blocks, at one division an element.
constexpr int64_t kShortSample = 1024;

// Block (sample, tile) covers kThreads * kUnroll vectors; a sample's first block also does its ends.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_noise_rows(const AddNoise args, const unsigned tiles) {
    using V = Vector<T>;
    const int64_t sample = blockIdx.x / tiles;
    const int64_t tile = blockIdx.x % tiles;
    const T* x0 = static_cast<const T*>(args.x0) + sample * args.inner;
    const T* noise = static_cast<const T*>(args.noise) + sample * args.inner;
    T* out = static_cast<T*>(args.out) + sample * args.inner;
    const RowSplit split = split_row(reinterpret_cast<uint64_t>(x0), args.inner, sizeof(T));
    const int64_t first = tile * (kThreads * kUnroll) + threadIdx.x;

    V x[kUnroll], n[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = first + u * kThreads;
        if (at < split.vectors) {
            x[u] = reinterpret_cast<const V*>(x0 + split.head)[at];
            n[u] = reinterpret_cast<const V*>(noise + split.head)[at];
        }
    }
    const float alpha = load_weight(args.alpha, sample);
    const float sigma = load_weight(args.sigma, sample);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = first + u * kThreads;
        if (at < split.vectors) {
            V result;
#pragma unroll
            for (int i = 0; i < V::kLanes; ++i)
                result.lane[i] = mix(alpha, x[u].lane[i], sigma, n[u].lane[i]);
            reinterpret_cast<V*>(out + split.head)[at] = result;
        }
    }

    if (tile == 0) {
        const int lane = threadIdx.x;
        const int64_t after = split.head + split.vectors * V::kLanes + lane;
        if (lane < split.head) out[lane] = mix(alpha, x0[lane], sigma, noise[lane]);
        if (lane < split.tail) out[after] = mix(alpha, x0[after], sigma, noise[after]);
    }
}

// Any alignment, any sample size: one element a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_noise_elements(const AddNoise args) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (at >= args.batch * args.inner) return;
    const T x0 = static_cast<const T*>(args.x0)[at];
    const T noise = static_cast<const T*>(args.noise)[at];
    const int64_t sample = at / args.inner;
    const float alpha = load_weight(args.alpha, sample);
    const float sigma = load_weight(args.sigma, sample);
    static_cast<T*>(args.out)[at] = mix(alpha, x0, sigma, noise);
}

// No grid-stride loops: 2^31 blocks of either kernel are more than 2^38 elements, beyond any card's memory.
template <typename T>
cudaError_t launch(const AddNoise& args, cudaStream_t stream) {
    if (args.inner < kShortSample || !same_phase(args.out, args.x0, args.noise)) {
        const int64_t blocks = ceil_div(args.batch * args.inner, kThreads);
        return FASTDIFF_LAUNCH(add_noise_elements<T>, blocks, kThreads, stream, args);
    }
    const int64_t tiles = ceil_div(args.inner / Vector<T>::kLanes, kThreads * kUnroll);
    return FASTDIFF_LAUNCH(
        add_noise_rows<T>, args.batch * tiles, kThreads, stream, args, static_cast<unsigned>(tiles));
}

}  // namespace

cudaError_t add_noise(const AddNoise& args, cudaStream_t stream) {
    if (args.batch == 0 || args.inner == 0) return cudaSuccess;
    switch (args.element) {
        case Element::kFloat32:
            return launch<float>(args, stream);
        case Element::kFloat16:
            return launch<__half>(args, stream);
        case Element::kBfloat16:
            return launch<__nv_bfloat16>(args, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace fastdiff::cuda
