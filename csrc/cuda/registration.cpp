// All the CUDA library knows of torch: fastdiff's operations on the CUDA key, through the stable ABI.
// fastdiff/ops has checked devices, dtypes and shapes, and made the images dense in one layout.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "add_noise.h"

namespace fastdiff::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The caller's current stream, so that torch.cuda.stream(...) and graph capture work.
cudaStream_t current_stream(int32_t device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

Element element_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return Element::kFloat32;
        case ScalarType::Half:
            return Element::kFloat16;
        case ScalarType::BFloat16:
            return Element::kBfloat16;
        default:
            STD_TORCH_CHECK(
                false, "the cuda backend takes float32, float16 and bfloat16: use the reference backend");
    }
}

Weight weight_of(const Tensor& values) {
    return {values.const_data_ptr(), values.numel() == 1 ? 0 : 1, values.scalar_type() == ScalarType::Double};
}

Tensor add_noise_cuda(const Tensor& x0, const Tensor& noise, const Tensor& alpha, const Tensor& sigma) {
    const int32_t device = x0.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    Tensor out = torch::stable::empty_like(x0);
    AddNoise args;
    args.out = out.mutable_data_ptr();
    args.x0 = x0.const_data_ptr();
    args.noise = noise.const_data_ptr();
    args.alpha = weight_of(alpha);
    args.sigma = weight_of(sigma);
    args.batch = x0.size(0);
    args.inner = args.batch == 0 ? 0 : x0.numel() / args.batch;
    args.element = element_of(x0);
    STD_CUDA_CHECK(add_noise(args, current_stream(device)));
    return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) { m.impl("add_noise", TORCH_BOX(&add_noise_cuda)); }

}  // namespace
}  // namespace fastdiff::cuda
