// add_noise, q_sample and randn_like on the CUDA key. fastdiff/ops has checked the arguments and made the
// images dense in one layout; what is asked again here keeps a direct call, such as an exported graph's, from
// reading beyond a tensor.
#include <cstring>

#include "add_noise.h"
#include "q_sample.h"
#include "tensors.h"

namespace fastdiff::cuda {
namespace {

// values: one a sample of x0, or one for all; one for all may be on the CPU, to be read here and now.
Weight weight_of(const Tensor& values, const Tensor& x0) {
    const bool is_double = values.scalar_type() == ScalarType::Double;
    require(
        (is_double || values.scalar_type() == ScalarType::Float) && values.is_contiguous() &&
            (values.numel() == 1 || values.numel() == size_of(x0)),
        "alpha and sigma must be float32 or float64, one value or one a sample");
    if (values.numel() == 1 && values.is_cpu()) {
        const void* data = values.const_data_ptr();
        return {
            nullptr, 0, false,
            is_double ? static_cast<float>(*static_cast<const double*>(data))
                      : *static_cast<const float*>(data)};
    }
    require(
        same_device(values, x0), "alpha and sigma must be on x0's device, or one number for all on the CPU");
    return {values.const_data_ptr(), values.numel() == 1 ? 0 : 1, is_double, 0.0f};
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

DeviceSize current_device(int32_t index) {
    DeviceSize size = {};
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&size.multiprocessors, cudaDevAttrMultiProcessorCount, index));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&size.threads, cudaDevAttrMaxThreadsPerMultiProcessor, index));
    return size;
}

Tensor nothing(const Tensor& like, ScalarType type) {
    return torch::stable::new_empty(like, std::vector<int64_t>{0}, type);
}

// Draws as `state` or `seeds` say, and returns the state afterwards.
Tensor draw(QSample& args, const Tensor& x, const Maybe& state, const Maybe& seeds, int64_t stream) {
    const int32_t device = x.get_device_index();
    if (seeds.has_value()) {
        require(
            seeds->scalar_type() == ScalarType::Long && seeds->dim() == 1 && seeds->is_contiguous() &&
                seeds->size(0) == size_of(x) && same_device(*seeds, x),
            "seeds must be contiguous int64, one a sample, on x0's device");
        args.batch = size_of(x);
        args.inner = args.batch == 0 ? 0 : x.numel() / args.batch;
        const auto* values = static_cast<const int64_t*>(seeds->const_data_ptr());
        STD_CUDA_CHECK(q_sample_counted(args, values, stream, current_stream(device)));
        return nothing(x, ScalarType::Byte);
    }
    require(state.has_value(), "one of noise, state and seeds must be given");
    require(
        state->is_cpu() && state->scalar_type() == ScalarType::Byte && state->is_contiguous() &&
            state->numel() == sizeof(PhiloxState),
        "state must be that of a CUDA generator: 16 bytes on the CPU");
    Tensor after = torch::stable::clone(*state);
    PhiloxState philox;
    std::memcpy(&philox, after.const_data_ptr(), sizeof(philox));
    STD_CUDA_CHECK(q_sample_drawn(args, current_device(device), philox, current_stream(device)));
    std::memcpy(after.mutable_data_ptr(), &philox, sizeof(philox));
    return after;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> q_sample_cuda(
    const Tensor& x0, const Maybe& noise, const Tensor& alpha, const Tensor& sigma, const Maybe& state,
    const Maybe& seeds, int64_t stream, bool velocity) {
    require(is_dense(x0), "x0 must be dense");
    require(noise.has_value() || x0.is_contiguous(), "x0 must be contiguous where noise is drawn");
    const torch::stable::accelerator::DeviceGuard guard(x0.get_device_index());
    const ScalarType type = x0.scalar_type();
    Tensor x = torch::stable::empty_like(x0);
    Tensor drawn = noise.has_value() ? nothing(x0, type) : torch::stable::empty_like(x0);
    Tensor target = velocity ? torch::stable::empty_like(x0) : nothing(x0, type);
    QSample args = {};
    args.x0 = x0.const_data_ptr();
    args.x = x.mutable_data_ptr();
    args.velocity = velocity ? target.mutable_data_ptr() : nullptr;
    args.alpha = weight_of(alpha, x0);
    args.sigma = weight_of(sigma, x0);
    args.element = element_of(x0);
    const bool one_weight = args.alpha.stride == 0 && args.sigma.stride == 0;
    args.batch = one_weight ? 1 : size_of(x0);
    args.inner = args.batch == 0 ? 0 : x0.numel() / args.batch;
    if (!noise.has_value()) {
        args.noise = drawn.mutable_data_ptr();
        return {x, drawn, target, draw(args, x0, state, seeds, stream)};
    }
    require(
        same_layout(x0, *noise) && noise->scalar_type() == type && same_device(x0, *noise),
        "noise must have x0's layout, dtype and device");
    args.given = noise->const_data_ptr();
    STD_CUDA_CHECK(q_sample_given(args, current_stream(x0.get_device_index())));
    return {x, drawn, target, nothing(x0, ScalarType::Byte)};
}

std::tuple<Tensor, Tensor> randn_like_cuda(
    const Tensor& x, const Maybe& state, const Maybe& seeds, int64_t stream) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    const auto sizes = std::vector<int64_t>(x.sizes().begin(), x.sizes().end());
    Tensor noise = torch::stable::new_empty(x, sizes);
    QSample args = {};
    args.noise = noise.mutable_data_ptr();
    args.element = element_of(x);
    args.batch = 1;
    args.inner = x.numel();
    return {noise, draw(args, x, state, seeds, stream)};
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
    m.impl("add_noise", TORCH_BOX(&add_noise_cuda));
    m.impl("q_sample", TORCH_BOX(&q_sample_cuda));
    m.impl("randn_like", TORCH_BOX(&randn_like_cuda));
}

}  // namespace
}  // namespace fastdiff::cuda
