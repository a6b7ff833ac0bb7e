// What the ops that read a row of a plan ask of its tensors.
#pragma once

#include "settle.h"
#include "tensors.h"

namespace fastdiff {

// The tensor's memory: never null, so that null means that there is no tensor.
inline void* address(const Tensor& t) {
    static double nothing;
    return t.numel() ? t.data_ptr() : &nothing;
}

// The number of the row, once table and index are found to be what they must be.
inline int64_t row_number(const Tensor& table, const Tensor& index) {
    require(
        table.scalar_type() == ScalarType::Double && table.dim() == 2 &&
            table.size(1) == int64_t{sizeof(Row) / sizeof(double)} && table.is_contiguous() && table.is_cpu(),
        "table: it must be contiguous float64 [N, 22] on the CPU");
    require(
        index.scalar_type() == ScalarType::Long && index.numel() == 1 && index.is_cpu(),
        "index: it must be an int64 scalar on the CPU");
    const int64_t row = *static_cast<const int64_t*>(index.data_ptr());
    require(row >= 0 && row < table.size(0), "index: there is no such row in the table");
    return row;
}

inline const Row& row_of(const Tensor& table, int64_t row) {
    return static_cast<const Row*>(table.data_ptr())[row];
}

// The tensor's memory if it is given and its weight is not 0, else null: a term of weight 0 is never read.
inline const float* weighed(double weight, const Maybe& t, const Tensor& like, const char* wrong) {
    if (weight == 0 || !t.has_value()) return nullptr;
    require_float(*t, like, wrong);
    return static_cast<const float*>(address(*t));
}

// Whether t holds 2B samples, each laid out like those of x [B, ...].
inline bool is_doubled(const Tensor& t, const Tensor& x) {
    if (t.dim() != x.dim() || t.size(0) != 2 * x.size(0)) return false;
    for (int64_t i = 1; i < x.dim(); ++i)
        if (t.size(i) != x.size(i) || (x.size(i) != 1 && t.stride(i) != x.stride(i))) return false;
    return t.numel() == 0 || t.stride(0) == x.numel() / x.size(0);
}

// The memory of the branches' outputs, null where the row weighs them with 0 or they are not given.
struct Outputs {
    const void* cond;
    const void* uncond;
    Dtype dtype;
};

// output and uncond, or both in a doubled output; laid out like x.
inline Outputs model_outputs(const Row& r, const Tensor& output, const Maybe& uncond, const Tensor& x) {
    constexpr const char* fit = "output and uncond must have x's shape and layout, and one dtype";
    const Dtype dtype = dtype_of(output);
    const bool doubled = !uncond && is_doubled(output, x);
    require(output.is_cpu() && (r.g == 0 || doubled || same_layout(x, output)), fit);
    const char* cond = static_cast<const char*>(address(output));
    const char* other = doubled ? cond + x.numel() * width_of(dtype) : nullptr;
    if (uncond && r.g_uncond != 0) {
        require(uncond->is_cpu() && same_layout(x, *uncond) && dtype_of(*uncond) == dtype, fit);
        other = static_cast<const char*>(address(*uncond));
    }
    require(r.g_uncond == 0 || other, "the row reads the unconditional output: pass uncond");
    return {r.g != 0 ? cond : nullptr, r.g_uncond != 0 ? other : nullptr, dtype};
}

inline const float* per_sample(const Maybe& t, const Tensor& x) {
    if (!t.has_value()) return nullptr;
    require(
        t->scalar_type() == ScalarType::Float && t->is_cpu() && t->dim() == 1 && t->size(0) == x.size(0) &&
            t->is_contiguous(),
        "bound and gain must be contiguous float32, one value a sample");
    return static_cast<const float*>(address(*t));
}

}  // namespace fastdiff
