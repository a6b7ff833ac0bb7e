// The CPU kernels' place in PyTorch, through the LibTorch stable ABI: one library serves torch 2.10 and every
// later one. The schemas are defined in fastdiff/ops.
#include <pthread.h>

#include <atomic>

#include "tensors.h"

namespace fastdiff {

namespace {
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
}  // namespace

bool is_forked() { return forked.load(std::memory_order_relaxed); }

namespace {

Tensor add_noise(const Tensor& x0, const Tensor& noise, const Tensor& alpha, const Tensor& sigma) {
    const int64_t batch = size_of(x0);
    require(x0.is_cpu() && noise.is_cpu(), "x0 and noise must be on the CPU");
    require(is_dense(x0) && same_layout(x0, noise), "x0 and noise must be dense and laid out alike");
    require(x0.scalar_type() == noise.scalar_type(), "x0 and noise must have one dtype");
    for (const Tensor* t : {&alpha, &sigma})
        require(
            t->scalar_type() == ScalarType::Float && t->is_cpu() && t->dim() == 1 && t->is_contiguous() &&
                (t->numel() == 1 || t->numel() == batch),
            "alpha and sigma must be float32, one value or one a sample");
    Tensor out = torch::stable::empty_like(x0);
    const int64_t numel = x0.numel();
    if (numel == 0) return out;
    const AddNoise args = {
        x0.data_ptr(),
        noise.data_ptr(),
        out.data_ptr(),
        dtype_of(x0),
        static_cast<const float*>(alpha.data_ptr()),
        static_cast<const float*>(sigma.data_ptr()),
        alpha.numel() == 1 ? 0 : 1,
        sigma.numel() == 1 ? 0 : 1,
        numel / batch,
    };
    const auto kernel = kernels().add_noise;
    run_parallel(numel, 1024, 65536, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    return out;
}

const void* affine(const Maybe& t, const Tensor& x, Dtype& dtype) {
    if (!t.has_value()) return nullptr;
    require(
        t->is_cpu() && t->dim() == 1 && t->is_contiguous() && t->numel() == x.size(1) &&
            (t->scalar_type() == ScalarType::Float || t->scalar_type() == x.scalar_type()),
        "weight and bias must hold one value a channel, in float32 or x's dtype");
    dtype = dtype_of(*t);
    return t->data_ptr();
}

// The normalisation of a channels-last tensor: its statistics need all pixels of a group, which lie far
// apart.
void run_channels_last(GroupNormSilu args) {
    const int64_t batch = args.batch, channels = args.channels;
    args.chunk = std::max<int64_t>(32768 / channels / 64 * 64, 64);  // a thread's share: about 128 KiB
    args.chunks = (args.size + args.chunk - 1) / args.chunk;
    std::vector<double> moments(batch * args.chunks * 2 * channels);
    std::vector<float> normalise(batch * 3 * channels);
    args.moments = moments.data();
    args.normalise = normalise.data();
    const Kernels& k = kernels();
    const int64_t chunks = args.chunks, groups = args.groups;
    const auto grain = [](int64_t elements) { return std::max<int64_t>(16384 / elements, 1); };
    if (batch % torch::stable::get_num_threads() == 0) {  // whole samples: the threads meet once
        return run_parallel(batch, 1, grain(args.size * channels), [&](int64_t begin, int64_t end) {
            k.channels_last_moments(args, begin * chunks, end * chunks);
            k.channels_last_groups(args, begin * groups, end * groups);
            k.channels_last_apply(args, begin * chunks, end * chunks);
        });
    }
    const int64_t part = grain(args.chunk * channels);
    run_parallel(batch * chunks, 1, part, [&](int64_t begin, int64_t end) {
        k.channels_last_moments(args, begin, end);
    });
    k.channels_last_groups(args, 0, batch * groups);
    run_parallel(batch * chunks, 1, part, [&](int64_t begin, int64_t end) {
        k.channels_last_apply(args, begin, end);
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_silu(
    const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias, double eps, const Maybe& add,
    const Maybe& scale, const Maybe& shift, int64_t activation, const Maybe& residual) {
    require(
        !add.has_value() && !scale.has_value() && !shift.has_value() && !residual.has_value() &&
            activation == 1,
        "not yet: the C++ kernel takes no options");
    require(
        x.dim() >= 2 && groups > 0 && x.size(1) % groups == 0,
        "x must be [B, C, ...], C divisible by num_groups");
    const int64_t batch = x.size(0), channels = x.size(1), numel = x.numel();
    Tensor y = torch::stable::empty_like(x);
    const std::vector<int64_t> shape = {batch, groups}, none = {0};
    Tensor summed = torch::stable::new_empty(x, none);
    Tensor mean = torch::stable::new_empty(x, shape, ScalarType::Float);
    Tensor rstd = torch::stable::new_empty(x, shape, ScalarType::Float);
    if (numel == 0) {
        torch::stable::zero_(mean);
        torch::stable::zero_(rstd);
        return {y, summed, mean, rstd};
    }
    GroupNormSilu args = {};
    args.x = x.data_ptr();
    args.y = y.data_ptr();
    args.dtype = dtype_of(x);
    args.weight = affine(weight, x, args.weight_dtype);
    args.bias = affine(bias, x, args.bias_dtype);
    args.eps = eps;
    args.batch = batch, args.channels = channels, args.groups = groups,
    args.size = numel / (batch * channels);
    args.mean = static_cast<float*>(mean.data_ptr());
    args.rstd = static_cast<float*>(rstd.data_ptr());
    // The order of the pixels does not matter, only whether a channel's lie together or a pixel's channels
    // do.
    const bool planar = channels == 1 || x.stride(1) == args.size;
    require(is_dense(x) && (planar || x.stride(1) == 1), "x must be contiguous or channels-last");
    if (planar && args.size > 1) {
        const int64_t per_group = numel / (batch * groups), grain = std::max<int64_t>(16384 / per_group, 1);
        const auto kernel = kernels().group_norm_silu;
        run_parallel(batch * groups, 1, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    } else {
        run_channels_last(args);
    }
    return {y, summed, mean, rstd};
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("add_noise", TORCH_BOX(&fastdiff::add_noise));
    library.impl("group_norm_silu", TORCH_BOX(&fastdiff::group_norm_silu));
}
