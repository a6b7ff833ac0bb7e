// What the CPU ops ask of their tensors, and the threads they run on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../layout.h"
#include "kernels.h"

namespace fastdiff {

inline Dtype dtype_of(ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return Dtype::f32;
        case ScalarType::Half:
            return Dtype::f16;
        case ScalarType::BFloat16:
            return Dtype::bf16;
        default:
            throw std::runtime_error("fastdiff: dtype: the C++ kernels take float32, float16 and bfloat16");
    }
}
inline Dtype dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

inline void require_float(const Tensor& t, const Tensor& like, const char* message) {
    require(t.scalar_type() == ScalarType::Float && t.is_cpu() && same_layout(like, t), message);
}

// Whether this process was forked: the threads of the parent's pool are not here, and waiting for them would
// hang.
bool is_forked();

// Runs f(begin, end) over [0, total) in blocks of `block`, on torch's own threads where at least two get
// `grain` each.
template <class F>
void run_parallel(int64_t total, int64_t block, int64_t grain, const F& f) {
    if (total < 2 * grain || is_forked()) return f(int64_t{0}, total);
    const int64_t blocks = (total + block - 1) / block;
    torch::stable::parallel_for(
        0, blocks, std::max<int64_t>(grain / block, 1),
        [&](int64_t begin, int64_t end) { f(begin * block, std::min(end * block, total)); });
}

}  // namespace fastdiff
