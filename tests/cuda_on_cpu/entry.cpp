// A C entry to the launchers of csrc/cuda, and stand-ins for what only a CUDA build of torch has.
// The registrations are compiled as they stand, but onto the CPU key, since CPU tensors are all there is.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#define CUDA CPU
#include "registration_noise.cpp"
#undef CUDA

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int emulated_add_noise(
    void* out, const void* x0, const void* noise, const void* alpha, const void* sigma, int64_t alpha_stride,
    int64_t sigma_stride, bool alpha_is_double, bool sigma_is_double, int64_t batch, int64_t inner,
    int element) {
    fastdiff::cuda::AddNoise args;
    args.out = out;
    args.x0 = x0;
    args.noise = noise;
    args.alpha = {alpha, alpha_stride, alpha_is_double};
    args.sigma = {sigma, sigma_stride, sigma_is_double};
    args.batch = batch;
    args.inner = inner;
    args.element = static_cast<fastdiff::cuda::Element>(element);
    return fastdiff::cuda::add_noise(args, nullptr);
}

EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}
EXPORT AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
    *guard = nullptr;
    return AOTI_TORCH_SUCCESS;
}
EXPORT AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
EXPORT AOTITorchError
torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
    static char failed[] = "the launch failed";
    *message = error == cudaSuccess ? nullptr : failed;
    return AOTI_TORCH_SUCCESS;
}
EXPORT void torch_c10_cuda_free_error_msg(char*) {}
