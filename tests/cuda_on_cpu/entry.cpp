// A C entry to the launcher of csrc/cuda/add_noise.cu, for calls that torch could not make.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "add_noise.h"

extern "C" __attribute__((visibility("default"))) int emulated_add_noise(
    void* out, const void* x0, const void* noise, const void* alpha, const void* sigma, int64_t alpha_stride,
    int64_t sigma_stride, bool alpha_is_double, bool sigma_is_double, int64_t batch, int64_t inner,
    int element) {
    fastdiff::cuda::AddNoise args;
    args.out = out;
    args.x0 = x0;
    args.noise = noise;
    args.alpha = {alpha, alpha_stride, alpha_is_double, 0.0f};
    args.sigma = {sigma, sigma_stride, sigma_is_double, 0.0f};
    args.batch = batch;
    args.inner = inner;
    args.element = static_cast<fastdiff::cuda::Element>(element);
    return fastdiff::cuda::add_noise(args, nullptr);
}
