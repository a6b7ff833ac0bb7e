// What the step and the reductions before it ask of a row and of the model's outputs.
#pragma once

#include "solver_step.h"
#include "tensors.h"

namespace fastdiff::cuda {

static_assert(sizeof(Row) == 22 * sizeof(double));  // fastdiff.reference.WIDTH

struct RowAt {
    const Row* table;
    const int64_t* index;
    int64_t rows;
};

inline RowAt row_at(const Tensor& table, const Tensor& index, const Tensor& x) {
    require(
        table.scalar_type() == ScalarType::Double && table.dim() == 2 && table.is_contiguous() &&
            table.size(1) == static_cast<int64_t>(sizeof(Row) / sizeof(double)) && same_device(table, x),
        "table: it must be contiguous float64 [N, 22] on x's device");
    require(
        index.scalar_type() == ScalarType::Long && index.numel() == 1 && same_device(index, x),
        "index: it must be an int64 scalar on x's device");
    return {
        static_cast<const Row*>(table.const_data_ptr()), static_cast<const int64_t*>(index.const_data_ptr()),
        table.size(0)};
}

template <class T>
const T* vector(const Maybe& t, ScalarType type, const Tensor& x) {
    if (!t.has_value()) return nullptr;
    require(
        t->scalar_type() == type && same_device(*t, x) && t->dim() == 1 && t->size(0) == x.size(0) &&
            t->is_contiguous(),
        "bound and gain must be contiguous float32, seeds int64, one value a sample");
    return static_cast<const T*>(t->const_data_ptr());
}

// Whether t holds as many samples as x, times 1 or 2, each laid out like those of x.
inline bool holds(const Tensor& t, const Tensor& x, int64_t times) {
    if (t.dim() != x.dim() || t.size(0) != times * x.size(0)) return false;
    for (int64_t i = 1; i < x.dim(); ++i)
        if (t.size(i) != x.size(i) || (x.size(i) != 1 && t.stride(i) != x.stride(i))) return false;
    return t.numel() == 0 || t.size(0) == 1 || t.stride(0) == x.numel() / x.size(0);
}

// The model's conditional and unconditional output; the latter may be null.
struct Branches {
    const void* output;
    const void* uncond;
    Element type;
};

// like: the image whose layout both have; output may hold both branches, [2B, ...].
inline Branches branches(const Tensor& output, const Maybe& uncond, const Tensor& like) {
    Branches found = {output.const_data_ptr(), nullptr, element_of(output)};
    const bool both = !uncond.has_value() && holds(output, like, 2);
    require(
        same_device(output, like) && (both || same_layout(like, output)),
        "output must have x's shape and layout, or hold both branches, and be on its device");
    if (both)
        found.uncond = static_cast<const char*>(found.output) + output.numel() / 2 * bytes_of(found.type);
    if (!uncond.has_value()) return found;
    require(
        same_device(*uncond, output) && same_layout(output, *uncond) &&
            uncond->scalar_type() == output.scalar_type(),
        "output and uncond must have x's shape and layout, and one dtype");
    found.uncond = uncond->const_data_ptr();
    return found;
}

inline int multiprocessors(int32_t device) {
    return device_attribute(cudaDevAttrMultiProcessorCount, device);
}

}  // namespace fastdiff::cuda
