// curand_normal4 as torch.randn uses it, operation by operation: fused multiplications and additions where
// nvcc makes them by default, the accurate logarithm and root, the fast sine and cosine.
#pragma once

#include "philox.cuh"

namespace fastdiff::cuda {

__device__ __forceinline__ void curand_box_muller(uint32_t x, uint32_t y, float& first, float& second) {
    constexpr float kUnit = 2.3283064e-10f, kTurn = 2.3283064e-10f * 6.2831855f;
    const float u = __fmaf_rn(__uint2float_rn(x), kUnit, kUnit / 2);
    const float v = __fmaf_rn(__uint2float_rn(y), kTurn, kTurn / 2);
    const float radius = __fsqrt_rn(-2.0f * logf(u));
    float sine, cosine;
    __sincosf(v, &sine, &cosine);
    first = __fadd_rn(__fmul_rn(radius, sine), 0.0f);  // torch's value*std + mean makes -0 a 0
    second = __fadd_rn(__fmul_rn(radius, cosine), 0.0f);
}

}  // namespace fastdiff::cuda
