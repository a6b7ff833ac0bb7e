// Sums whose order is fixed by the thread and block indices alone, so that results repeat bit for bit.
#pragma once

#include <cuda_runtime_api.h>

namespace fastdiff::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Every lane gets the total: both sides of each exchange add the same two numbers.
template <typename V>
__device__ __forceinline__ V warp_sum(V value) {
#pragma unroll
    for (int flip = 16; flip > 0; flip /= 2) value += __shfl_xor_sync(kWholeWarp, value, flip);
    return value;
}

// K values a lane, K a power of two; afterwards lane l holds the total of value l % K. Some K shuffles, not 5
// K.
template <int kHalf, int K>
__device__ __forceinline__ float warp_transposed_sum(float (&value)[K]) {
    if constexpr (kHalf > 0) {
        const bool upper = threadIdx.x & kHalf;
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
            const float keep = upper ? value[i + kHalf] : value[i];
            const float give = upper ? value[i] : value[i + kHalf];
            value[i] = keep + __shfl_xor_sync(kWholeWarp, give, kHalf);
        }
        return warp_transposed_sum<kHalf / 2>(value);
    } else {
        float total = value[0];
#pragma unroll
        for (int flip = K; flip < 32; flip *= 2) total += __shfl_xor_sync(kWholeWarp, total, flip);
        return total;
    }
}

// Sums of K values a thread over a block of kWarps warps; every thread gets them. scratch: K * kWarps floats
// of shared memory, free again on return.
template <int K, int kWarps>
__device__ __forceinline__ void block_sum(float (&value)[K], float* scratch) {
    static_assert(kWarps <= 32, "a warp adds up the warps");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        value[k] = warp_sum(value[k]);
        if (lane == 0) scratch[k * kWarps + warp] = value[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) value[k] = warp_sum(lane < kWarps ? scratch[k * kWarps + lane] : 0.0f);
    __syncthreads();
}

}  // namespace fastdiff::cuda
