// solver_step and solver_step_ on the CUDA key. Nothing here waits for the GPU: what a row's weights ask for
// is found out by the kernel, so that a missing tensor makes NaN there (solver_step.h) where the CPU raises.
#include <functional>

#include "solver_step.h"
#include "step_tensors.h"

namespace fastdiff::cuda {
namespace {

const float* image(const Maybe& t, const Tensor& x, const char* message) {
    if (!t.has_value()) return nullptr;
    require(t->scalar_type() == ScalarType::Float && same_device(*t, x) && same_layout(x, *t), message);
    return static_cast<const float*>(t->const_data_ptr());
}

void set_outputs(SolverStep& s, const Tensor& x, const Maybe& output, const Maybe& uncond) {
    if (!output.has_value()) return;
    const Branches both = branches(*output, uncond, x);
    s.output = both.output, s.uncond = both.uncond, s.output_type = both.type;
}

// The noise, of any float type.
void set_noise(SolverStep& s, const Tensor& x, const Maybe& noise) {
    if (!noise.has_value()) return;
    require(same_device(*noise, x) && same_layout(x, *noise), "noise: it must be laid out like x");
    s.noise = noise->const_data_ptr();
    s.noise_type = element_of(*noise);
}

// Reads x from another tensor of its kind.
void set_source(SolverStep& s, const Tensor& x, const Maybe& source) {
    if (!source.has_value()) return;
    const float* from = image(source, x, "source: it must be float32, laid out like x");
    require(
        s.numel == 0 || std::less_equal<>()(from + s.numel, s.x) || std::less_equal<>()(s.x + s.numel, from),
        "source: it must not overlap x");
    s.x = from;
}

struct Options {
    const Maybe& uncond;
    const Maybe& anchor;
    const Maybe& noise;
    const Maybe& bound;
    const Maybe& gain;
    const Maybe& mask;
    const Maybe& known;
    const Maybe& known_noise;
    const Maybe& seeds;
};

SolverStep prepare(
    const Tensor& x, const Maybe& output, const Tensor& table, const Tensor& index, const Options& in) {
    require(x.scalar_type() == ScalarType::Float && x.dim() >= 1, "x: it must be float32 [B, ...]");
    require(is_dense(x), "x: it must be dense, the batch outermost: pass x.contiguous()");
    SolverStep s = {};
    s.x = static_cast<const float*>(x.const_data_ptr());
    s.numel = x.numel();
    s.sample = x.size(0) ? x.numel() / x.size(0) : 0;
    const RowAt row = row_at(table, index, x);
    s.table = row.table, s.index = row.index, s.rows = row.rows;
    set_outputs(s, x, output, in.uncond);
    s.anchor = image(in.anchor, x, "anchor: it must be float32, laid out like x");
    set_noise(s, x, in.noise);
    s.mask = image(in.mask, x, "mask: it must be float32, laid out like x");
    s.known = image(in.known, x, "known: it must be float32, laid out like x");
    s.known_noise = image(in.known_noise, x, "known_noise: it must be float32, laid out like x");
    require(s.mask || (!s.known && !s.known_noise), "known and known_noise need a mask: pass mask");
    s.bound = vector<float>(in.bound, ScalarType::Float, x);
    s.gain = vector<float>(in.gain, ScalarType::Float, x);
    s.seeds = vector<int64_t>(in.seeds, ScalarType::Long, x);
    require(!s.seeds || x.is_contiguous(), "seeds: x must be contiguous: draw the noise beforehand");
    return s;
}

void set_input(SolverStep& s, const Tensor& input, bool doubled) {
    s.input = input.mutable_data_ptr();
    s.input_type = element_of(input);
    if (doubled) s.input_twin = static_cast<char*>(s.input) + s.numel * bytes_of(s.input_type);
}

// New memory laid out like x, once or twice along the batch.
Tensor empty(const Tensor& x, ScalarType type, bool doubled) {
    auto sizes = std::vector<int64_t>(x.sizes().begin(), x.sizes().end());
    auto strides = std::vector<int64_t>(x.strides().begin(), x.strides().end());
    if (sizes[0] == 1) strides[0] = x.numel();  // which may be anything where there is but one
    if (doubled) sizes[0] *= 2;
    int32_t device = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), static_cast<int32_t>(type), device,
        x.get_device_index(), &handle));
    return Tensor(handle);
}

std::tuple<Tensor, Tensor, Tensor> solver_step_cuda(
    const Tensor& x, const Maybe& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& anchor, const Maybe& h1, const Maybe& h2, const Maybe& h3, const Maybe& noise,
    const Maybe& bound, const Maybe& gain, const Maybe& mask, const Maybe& known, const Maybe& known_noise,
    const Maybe& seeds, ScalarType input_dtype, bool doubled) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    SolverStep s = prepare(
        x, output, table, index, {uncond, anchor, noise, bound, gain, mask, known, known_noise, seeds});
    int newest = 0;
    for (const Maybe* h : {&h1, &h2, &h3})
        s.history[newest++] = image(*h, x, "history: it must be float32, laid out like x");
    Tensor next = empty(x, ScalarType::Float, false), input = empty(x, input_dtype, doubled);
    Tensor value =
        output ? empty(x, ScalarType::Float, false) : torch::stable::new_empty(x, std::vector<int64_t>{0});
    s.x_next = static_cast<float*>(next.mutable_data_ptr());
    s.value = output ? static_cast<float*>(value.mutable_data_ptr()) : nullptr;
    set_input(s, input, doubled);
    STD_CUDA_CHECK(solver_step(s, current_stream(x.get_device_index())));
    return {next, value, input};
}

void solver_step_inplace_cuda(
    const Tensor& x, const Maybe& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& anchor, const Maybe& history, const Maybe& noise, const Maybe& bound, const Maybe& gain,
    const Maybe& mask, const Maybe& known, const Maybe& known_noise, const Maybe& seeds, const Maybe& source,
    const Maybe& input) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    SolverStep s = prepare(
        x, output, table, index, {uncond, anchor, noise, bound, gain, mask, known, known_noise, seeds});
    s.x_next = const_cast<float*>(s.x);
    set_source(s, x, source);
    s.anchor_next = const_cast<float*>(s.anchor);
    if (history.has_value()) {
        s.slots = history->dim() ? static_cast<int>(history->size(0)) : 0;
        require(
            history->scalar_type() == ScalarType::Float && same_device(*history, x) && s.slots > 0 &&
                same_layout(x, *history, 1) &&
                (s.slots == 1 || s.numel == 0 || history->stride(0) == s.numel),
            "history: it must be float32 [S, *x.shape], each slot laid out like x");
        s.ring = static_cast<float*>(history->mutable_data_ptr());
    }
    if (input.has_value()) {
        const bool doubled = holds(*input, x, 2);
        require(
            same_device(*input, x) && (doubled || holds(*input, x, 1)),
            "input: it must hold x once or twice, laid out like x");
        set_input(s, *input, doubled);
    }
    STD_CUDA_CHECK(solver_step(s, current_stream(x.get_device_index())));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
    m.impl("solver_step", TORCH_BOX(&solver_step_cuda));
    m.impl("solver_step_", TORCH_BOX(&solver_step_inplace_cuda));
}

}  // namespace
}  // namespace fastdiff::cuda
