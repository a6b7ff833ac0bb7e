// What the ops ask of their tensors. Errors are std::runtime_error: the Python door has the friendly ones.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace fastdiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

inline void require(bool condition, const char* message) {
    if (!condition) throw std::runtime_error(message);
}

inline Dtype dtype_of(ScalarType type) {
    switch (type) {
        case ScalarType::Float: return Dtype::f32;
        case ScalarType::Half: return Dtype::f16;
        case ScalarType::BFloat16: return Dtype::bf16;
        default: throw std::runtime_error("dtype: the C++ kernels take float32, float16 and bfloat16");
    }
}
inline Dtype dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

inline int64_t size_of(const Tensor& t) { return t.dim() == 0 ? 1 : t.size(0); }  // samples

// Whether the elements of b, from its dimension `skip` on, lie in memory as those of a do.
inline bool same_layout(const Tensor& a, const Tensor& b, int64_t skip = 0) {
    const auto sizes = a.sizes(), others = b.sizes(), strides = a.strides(), other_strides = b.strides();
    if (others.size() != sizes.size() + skip) return false;
    for (size_t i = 0; i < sizes.size(); ++i)
        if (sizes[i] != others[i + skip] || (sizes[i] != 1 && strides[i] != other_strides[i + skip])) return false;
    return true;
}

// Whether t fills its memory without gaps or overlap, the batch outermost.
inline bool is_dense(const Tensor& t) {
    if (t.is_contiguous() || t.numel() == 0) return true;
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (int64_t i = 0; i < t.dim(); ++i)
        if (t.size(i) != 1) dims.emplace_back(t.stride(i), t.size(i));
    std::sort(dims.begin(), dims.end());
    int64_t expected = 1;
    for (const auto& [stride, size] : dims) {
        if (stride != expected) return false;
        expected *= size;
    }
    return t.size(0) == 1 || t.stride(0) * t.size(0) == expected;
}

inline void require_float(const Tensor& t, const Tensor& like, const char* message) {
    require(t.scalar_type() == ScalarType::Float && t.is_cpu() && same_layout(like, t), message);
}

// Runs f(begin, end) over [0, total) in blocks of `block`, on torch's own threads where at least two get `grain` each.
template <class F>
void run_parallel(int64_t total, int64_t block, int64_t grain, const F& f) {
    if (total < 2 * grain) return f(int64_t{0}, total);
    const int64_t blocks = (total + block - 1) / block;
    torch::stable::parallel_for(0, blocks, std::max<int64_t>(grain / block, 1), [&](int64_t begin, int64_t end) {
        f(begin * block, std::min(end * block, total));
    });
}

}  // namespace fastdiff
