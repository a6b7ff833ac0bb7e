// alpha and sigma of a sample, and what they make of two images.
#pragma once

#include "add_noise.h"
#include "vector.cuh"

namespace fastdiff::cuda {

__device__ inline float load_weight(const Weight& weight, int64_t sample) {
    if (!weight.data) return weight.value;
    const int64_t at = sample * weight.stride;
    return weight.is_double ? static_cast<float>(static_cast<const double*>(weight.data)[at])
                            : static_cast<const float*>(weight.data)[at];
}

// a*x + b*y, in float32 and rounded once.
template <typename T>
__device__ inline T mix(float a, T x, float b, T y) {
    return from_float<T>(fmaf(a, to_float(x), b * to_float(y)));
}

}  // namespace fastdiff::cuda
