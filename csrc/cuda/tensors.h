// What the CUDA ops ask of their tensors, and of torch: the caller's stream and device, through the stable
// ABI.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include "../layout.h"
#include "element.h"

namespace fastdiff::cuda {

// The caller's current stream, so that torch.cuda.stream(...) and graph capture work.
inline cudaStream_t current_stream(int32_t device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

inline Element element_of(ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return Element::kFloat32;
        case ScalarType::Half:
            return Element::kFloat16;
        case ScalarType::BFloat16:
            return Element::kBfloat16;
        default:
            throw std::runtime_error("fastdiff: dtype: the CUDA kernels take float32, float16 and bfloat16");
    }
}
inline Element element_of(const Tensor& tensor) { return element_of(tensor.scalar_type()); }

inline int device_attribute(cudaDeviceAttr which, int32_t device) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
}

// Whether a launch failed only because its blocks could not wait for each other, on a card that is shared
// (MPS, green contexts) or cannot do that at all; then nobody else is told of it.
inline bool cooperation_refused(cudaError_t error) {
    if (error != cudaErrorCooperativeLaunchTooLarge && error != cudaErrorNotSupported) return false;
    cudaGetLastError();
    return true;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
    return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

}  // namespace fastdiff::cuda
