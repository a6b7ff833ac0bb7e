// group_norm_silu and its gradient on the CUDA key: checks, outputs, a workspace for each call, and the
// launch.
#include <array>
#include <atomic>
#include <mutex>

#include "group_norm_silu.h"
#include "tensors.h"

namespace fastdiff::cuda {
namespace {

constexpr int kMostDevices = 64;
std::atomic<int> forced{0};
std::array<std::atomic<bool>, kMostDevices> known{};
std::array<Chip, kMostDevices> chips;
std::mutex asking;

Chip ask_chip(int device) {
    Chip chip = {};
    chip.architecture = 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, device) +
                        device_attribute(cudaDevAttrComputeCapabilityMinor, device);
    chip.sms = device_attribute(cudaDevAttrMultiProcessorCount, device);
    chip.shared_block = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    chip.shared_sm = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    chip.l2 = device_attribute(cudaDevAttrL2CacheSize, device);
    chip.cooperative = device_attribute(cudaDevAttrCooperativeLaunch, device) != 0;
    return chip;
}

// Asked once a device, by one thread at a time.
Chip chip_of(int device) {
    const int index = device < 0 ? 0 : device;
    if (index >= kMostDevices) return ask_chip(index);
    if (!known[index].load(std::memory_order_acquire)) {
        const std::lock_guard<std::mutex> lock(asking);
        if (!known[index].load(std::memory_order_relaxed)) {
            chips[index] = ask_chip(index);
            known[index].store(true, std::memory_order_release);
        }
    }
    return chips[index];
}

Values values_of(const Maybe& t, const Tensor& x, int64_t size, const char* message) {
    if (!t.has_value()) return {nullptr, false};
    const bool wide = t->scalar_type() == ScalarType::Float;
    require(
        (wide || t->scalar_type() == x.scalar_type()) && t->is_contiguous() && same_device(*t, x) &&
            t->numel() == size,
        message);
    return {t->const_data_ptr(), wide};
}

// Whether each pixel's channels lie together; else each channel's pixels must.
bool is_channels_last(const Tensor& x) {
    if (x.is_contiguous()) return false;
    require(is_dense(x), "x must be dense");
    if (x.dim() > 2 && x.stride(1) == 1) return true;
    int64_t pixels = 1;
    for (int64_t i = 2; i < x.dim(); ++i) pixels *= x.size(i);
    require(x.stride(1) == pixels, "x must be planar or channels-last");
    return false;
}

Norm norm_of(
    const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias, const Maybe& add,
    const Maybe& scale, const Maybe& shift, int64_t activation) {
    require(x.dim() >= 2, "x must be [B, C, ...]");
    const int64_t batch = x.size(0), channels = x.size(1);
    require(groups >= 1 && channels % groups == 0, "the channels must divide into the groups");
    require(activation >= 0 && activation <= 2, "activation must be 0 (none), 1 (silu) or 2 (gelu)");
    constexpr char kVector[] = "weight and bias must be contiguous [C], float32 or x's dtype, on its device";
    constexpr char kMatrix[] =
        "add, scale and shift must be contiguous [B, C], float32 or x's dtype, on its device";
    Norm norm = {};
    norm.weight = values_of(weight, x, channels, kVector);
    norm.bias = values_of(bias, x, channels, kVector);
    norm.add = values_of(add, x, batch * channels, kMatrix);
    norm.scale = values_of(scale, x, batch * channels, kMatrix);
    norm.shift = values_of(shift, x, batch * channels, kMatrix);
    norm.batch = batch;
    norm.channels = channels;
    norm.groups = groups;
    norm.pixels = batch * channels == 0 ? 0 : x.numel() / (batch * channels);
    norm.channels_last = norm.pixels > 1 && is_channels_last(x);
    norm.activation = static_cast<int>(activation);
    norm.element = element_of(x);
    return norm;
}

void require_alike(const Tensor& t, const Tensor& x, const char* message) {
    require(t.scalar_type() == x.scalar_type() && same_device(t, x) && same_layout(x, t), message);
}

// Plans, takes a workspace from torch's allocator on the current stream, and launches. Where the grid of a
// cooperative launch does not fit (MPS, a card shared with others), two launches do the work.
template <typename Args>
void run(
    const Args& args, const Tensor& x, bool backward,
    cudaError_t (*launch)(const Args&, const Plan&, void*, cudaStream_t)) {
    const int32_t device = x.get_device_index();
    const Chip chip = chip_of(device);
    const cudaStream_t stream = current_stream(device);
    Variant wanted = static_cast<Variant>(forced.load(std::memory_order_relaxed));
    for (bool again = false;; again = true) {
        const Plan plan = plan_group_norm(args.norm, alignment_of(args), chip, backward, wanted);
        Tensor workspace =
            torch::stable::new_empty(x, std::vector<int64_t>{plan.workspace}, ScalarType::Byte);
        const cudaError_t error = launch(args, plan, workspace.mutable_data_ptr(), stream);
        if (again || !cooperation_refused(error)) {
            STD_CUDA_CHECK(error);
            return;
        }
        wanted = Variant::kLaunches;
    }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_silu_cuda(
    const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias, double eps, const Maybe& add,
    const Maybe& scale, const Maybe& shift, int64_t activation, const Maybe& residual) {
    GroupNormSilu args = {};
    args.norm = norm_of(x, groups, weight, bias, add, scale, shift, activation);
    if (residual) require_alike(*residual, x, "residual must be like x");
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    Tensor y = torch::stable::empty_like(x);
    Tensor summed =
        residual ? torch::stable::empty_like(x) : torch::stable::new_empty(x, std::vector<int64_t>{0});
    const std::vector<int64_t> size = {args.norm.batch, groups};
    if (x.numel() == 0)
        return {
            y, summed, torch::stable::new_zeros(x, size, ScalarType::Float),
            torch::stable::new_zeros(x, size, ScalarType::Float)};
    Tensor mean = torch::stable::new_empty(x, size, ScalarType::Float);
    Tensor rstd = torch::stable::new_empty(x, size, ScalarType::Float);
    args.y = y.mutable_data_ptr();
    args.x = x.const_data_ptr();
    args.residual = residual ? residual->const_data_ptr() : nullptr;
    args.summed = residual ? summed.mutable_data_ptr() : nullptr;
    args.mean = static_cast<float*>(mean.mutable_data_ptr());
    args.rstd = static_cast<float*>(rstd.mutable_data_ptr());
    args.eps = eps;
    run(args, x, false, &group_norm_silu);
    return {y, summed, mean, rstd};
}

std::tuple<Tensor, Tensor> group_norm_silu_backward_cuda(
    const Tensor& grad, const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias,
    const Tensor& mean, const Tensor& rstd, const Maybe& add, const Maybe& scale, const Maybe& shift,
    int64_t activation) {
    GroupNormSiluBackward args = {};
    args.norm = norm_of(x, groups, weight, bias, add, scale, shift, activation);
    require_alike(grad, x, "grad must be like x");
    for (const Tensor* t : {&mean, &rstd})
        require(
            t->scalar_type() == ScalarType::Float && t->is_contiguous() && same_device(*t, x) &&
                t->numel() == args.norm.batch * groups,
            "mean and rstd must be contiguous float32 [B, groups] on x's device");
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    Tensor dx = torch::stable::empty_like(x);
    const std::vector<int64_t> size = {3, args.norm.batch, args.norm.channels};
    if (x.numel() == 0) return {dx, torch::stable::new_zeros(x, size, ScalarType::Float)};
    Tensor sums = torch::stable::new_empty(x, size, ScalarType::Float);
    args.dx = dx.mutable_data_ptr();
    args.sums = static_cast<float*>(sums.mutable_data_ptr());
    args.grad = grad.const_data_ptr();
    args.x = x.const_data_ptr();
    args.mean = static_cast<const float*>(mean.const_data_ptr());
    args.rstd = static_cast<const float*>(rstd.const_data_ptr());
    run(args, x, true, &group_norm_silu_backward);
    return {dx, sums};
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
    m.impl("group_norm_silu", TORCH_BOX(&group_norm_silu_cuda));
    m.impl("group_norm_silu_backward", TORCH_BOX(&group_norm_silu_backward_cuda));
}

}  // namespace
}  // namespace fastdiff::cuda

#define EXPORT extern "C" __attribute__((visibility("default")))

// For tests and benchmarks: every call gets this variant where it is possible, 1 to 4 for A to D, 0 to end
// it. Returns what was asked before.
EXPORT int fastdiff_force_variant(int variant) { return fastdiff::cuda::forced.exchange(variant); }

// The variant, 1 to 4, that images at 16-byte boundaries get on a device; element: 0 float32, 1 float16, 2
// bfloat16.
EXPORT int fastdiff_group_norm_variant(
    int device, int64_t batch, int64_t channels, int64_t groups, int64_t pixels, bool channels_last,
    int element, bool backward) {
    using namespace fastdiff::cuda;
    if (batch < 1 || pixels < 1 || groups < 1 || channels < 1 || channels % groups != 0) return 0;
    Norm norm = {};
    norm.batch = batch;
    norm.channels = channels;
    norm.groups = groups;
    norm.pixels = pixels;
    norm.channels_last = channels_last;
    norm.element = static_cast<Element>(element);
    const Variant wanted = static_cast<Variant>(forced.load(std::memory_order_relaxed));
    return static_cast<int>(
        plan_group_norm(norm, {true, true, 0}, chip_of(device), backward, wanted).variant);
}

// For tests, which change what the device says of itself.
EXPORT void fastdiff_forget_devices() {
    for (auto& device : fastdiff::cuda::known) device = false;
}
