// dynamic_bound and rescale_gain on the CUDA key: what is computed before a step, without waiting for the
// GPU.
#include <cmath>

#include "dynamic_bound.h"
#include "rescale_gain.h"
#include "step_tensors.h"

namespace fastdiff::cuda {
namespace {

// Blocks that share a sample must all be on the GPU at once. Where that is refused, one block a sample does
// the work.
void launch(DynamicBound& d, const Tensor& x, int32_t device) {
    d.blocks = device_attribute(cudaDevAttrCooperativeLaunch, device) == 0
                   ? 1
                   : dynamic_bound_blocks(d.batch, d.sample, multiprocessors(device));
    const int64_t words = d.blocks == 1 ? 0 : d.batch * dynamic_bound_scratch;
    Tensor scratch = torch::stable::new_empty(x, std::vector<int64_t>{words}, ScalarType::Int);
    d.scratch = static_cast<uint32_t*>(scratch.mutable_data_ptr());
    cudaError_t error = dynamic_bound(d, current_stream(device));
    if (d.blocks > 1 && cooperation_refused(error)) {
        d.blocks = 1;
        error = dynamic_bound(d, current_stream(device));
    }
    STD_CUDA_CHECK(error);
}

Tensor dynamic_bound_cuda(
    const Tensor& x, const Tensor& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& gain, double quantile, double most) {
    require(x.scalar_type() == ScalarType::Float && x.dim() >= 1, "x: it must be float32 [B, ...]");
    require(is_dense(x), "x: it must be dense, the batch outermost: pass x.contiguous()");
    require(
        quantile >= 0 && quantile <= 1 && most >= 1, "quantile must lie between 0 and 1, most be at least 1");
    const int32_t device = x.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    DynamicBound d = {};
    const RowAt row = row_at(table, index, x);
    d.table = row.table, d.index = row.index, d.rows = row.rows;
    const Branches both = branches(output, uncond, x);
    d.output = both.output, d.uncond = both.uncond, d.type = both.type;
    d.x = static_cast<const float*>(x.const_data_ptr());
    d.gain = vector<float>(gain, ScalarType::Float, x);
    d.batch = x.size(0);
    d.sample = d.batch == 0 ? 0 : x.numel() / d.batch;
    Tensor bound = torch::stable::new_empty(x, std::vector<int64_t>{d.batch});
    if (d.sample == 0) return torch::stable::fill_(bound, 1.0);
    require(d.sample <= UINT32_MAX, "x: a sample must hold less than 2^32 elements");
    const double place = quantile * static_cast<double>(d.sample - 1);
    d.rank = static_cast<uint32_t>(place);
    d.fraction = static_cast<float>(place - std::floor(place));
    d.most = static_cast<float>(most);
    d.bound = static_cast<float*>(bound.mutable_data_ptr());
    launch(d, x, device);
    return bound;
}

Tensor rescale_gain_cuda(
    const Tensor& output, const Maybe& uncond, const Tensor& table, const Tensor& index, double rescale) {
    require(
        output.dim() >= 1 && is_dense(output) && (uncond.has_value() || output.size(0) % 2 == 0),
        "output must be dense [B, ...], or [2B, ...] without uncond");
    const int32_t device = output.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    RescaleGain r = {};
    const RowAt row = row_at(table, index, output);
    r.table = row.table, r.index = row.index, r.rows = row.rows;
    r.batch = uncond.has_value() ? output.size(0) : output.size(0) / 2;
    r.sample = output.size(0) == 0 ? 0 : output.numel() / output.size(0);
    const Branches both = branches(output, uncond, output);
    r.output = both.output, r.type = both.type;
    r.uncond = uncond.has_value()
                   ? both.uncond
                   : static_cast<const char*>(r.output) + r.batch * r.sample * bytes_of(r.type);
    r.rescale = static_cast<float>(rescale);
    Tensor gain = torch::stable::new_empty(output, std::vector<int64_t>{r.batch}, ScalarType::Float);
    if (r.sample == 0) return torch::stable::fill_(gain, 1.0);
    r.gain = static_cast<float*>(gain.mutable_data_ptr());
    r.blocks = rescale_gain_blocks(r.batch, r.sample, multiprocessors(device));
    constexpr int64_t kFloats = sizeof(Moments) / sizeof(float);
    const int64_t floats = r.blocks == 1 ? 0 : r.batch * r.blocks * kFloats;
    Tensor scratch = torch::stable::new_empty(gain, std::vector<int64_t>{floats});
    r.scratch = static_cast<Moments*>(scratch.mutable_data_ptr());
    STD_CUDA_CHECK(rescale_gain(r, current_stream(device)));
    return gain;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
    m.impl("dynamic_bound", TORCH_BOX(&dynamic_bound_cuda));
    m.impl("rescale_gain", TORCH_BOX(&rescale_gain_cuda));
}

}  // namespace
}  // namespace fastdiff::cuda
