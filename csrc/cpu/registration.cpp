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

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("add_noise", TORCH_BOX(&fastdiff::add_noise));
}
