// Element types of the kernels: float32 arithmetic on either side of 16-byte loads and stores.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <cstring>

#include "row_split.h"

namespace fastdiff::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// Copied as a whole it is one access, which the compiler may only emit because of the alignment.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    static constexpr int kLanes = N;
    T lane[N];
};

template <typename T>
using Vector = Pack<T, kVectorBytes / sizeof(T)>;  // 128 bits

// One 128-bit store: nvcc takes the assignment of a vector apart where it was made lane by lane.
template <typename T>
__device__ __forceinline__ void store_whole(T* at, const Vector<T>& vector) {
    uint4 bits;
    memcpy(&bits, &vector, sizeof(bits));
    __stcg(reinterpret_cast<uint4*>(at), bits);
}

}  // namespace fastdiff::cuda
