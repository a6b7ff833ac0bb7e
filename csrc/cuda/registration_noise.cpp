// add_noise on the CUDA key. fastdiff/ops has checked the arguments and made the images dense in one layout;
// what is asked again here keeps a direct call, such as an exported graph's, from reading beyond a tensor.
#include "add_noise.h"
#include "tensors.h"

namespace fastdiff::cuda {
namespace {

// values: one a sample of x0, or one for all.
Weight weight_of(const Tensor& values, const Tensor& x0) {
    const bool is_double = values.scalar_type() == ScalarType::Double;
    require(
        (is_double || values.scalar_type() == ScalarType::Float) && values.is_contiguous() &&
            same_device(values, x0) && (values.numel() == 1 || values.numel() == size_of(x0)),
        "alpha and sigma must be float32 or float64 on x0's device, one value or one a sample");
    return {values.const_data_ptr(), values.numel() == 1 ? 0 : 1, is_double};
}

Tensor add_noise_cuda(const Tensor& x0, const Tensor& noise, const Tensor& alpha, const Tensor& sigma) {
    require(is_dense(x0) && same_layout(x0, noise), "x0 and noise must be dense and laid out alike");
    require(
        x0.scalar_type() == noise.scalar_type() && same_device(x0, noise),
        "x0 and noise must have one dtype and device");
    const int32_t device = x0.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    Tensor out = torch::stable::empty_like(x0);
    AddNoise args;
    args.out = out.mutable_data_ptr();
    args.x0 = x0.const_data_ptr();
    args.noise = noise.const_data_ptr();
    args.alpha = weight_of(alpha, x0);
    args.sigma = weight_of(sigma, x0);
    const bool one_weight = args.alpha.stride == 0 && args.sigma.stride == 0;
    args.batch = one_weight ? 1 : size_of(x0);  // samples alike are one long sample
    args.inner = args.batch == 0 ? 0 : x0.numel() / args.batch;
    args.element = element_of(x0);
    STD_CUDA_CHECK(add_noise(args, current_stream(device)));
    return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) { m.impl("add_noise", TORCH_BOX(&add_noise_cuda)); }

}  // namespace
}  // namespace fastdiff::cuda
