// What the ops of either device ask of how their tensors lie in memory. The Python door
// turns errors that begin with "fastdiff: " into ValueErrors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastdiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

inline void require(bool condition, const char* message) {
    if (!condition) throw std::runtime_error(std::string("fastdiff: ") + message);
}

inline int64_t size_of(const Tensor& t) { return t.dim() == 0 ? 1 : t.size(0); }  // samples

// Whether the elements of b, from its dimension `skip` on, lie in memory as those of a do.
inline bool same_layout(const Tensor& a, const Tensor& b, int64_t skip = 0) {
    const auto sizes = a.sizes(), others = b.sizes(), strides = a.strides(), other_strides = b.strides();
    if (others.size() != sizes.size() + skip) return false;
    for (size_t i = 0; i < sizes.size(); ++i)
        if (sizes[i] != others[i + skip] || (sizes[i] != 1 && strides[i] != other_strides[i + skip]))
            return false;
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

}  // namespace fastdiff
