// solver_step and solver_step_ on the CPU: one row of the table turned into pointers and weights for one
// kernel; and the same step as a plain C function, for fastdiff._host.
#include <functional>

#include "../stepper.h"
#include "row.h"

namespace fastdiff {
namespace {

constexpr int64_t kBlock = 1024, kGrain = 65536;
constexpr int64_t kDrawn = 2048;  // values of noise that are drawn at once, and used from the first cache

// The images a row can read besides x, as given.
struct Inputs {
    const Tensor& x;
    const Maybe& output;
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

const int64_t* seeds_of(const Maybe& t, const Tensor& x) {
    if (!t.has_value()) return nullptr;
    require(
        t->scalar_type() == ScalarType::Long && t->is_cpu() && t->dim() == 1 && t->size(0) == x.size(0) &&
            t->is_contiguous(),
        "seeds must be contiguous int64, one a sample");
    require(x.is_contiguous(), "seeds: noise is drawn in the order of pixels, pass a contiguous x");
    return static_cast<const int64_t*>(address(*t));
}

// The noise, of any float type, where the row adds it.
void set_noise(SolverStep& s, const Row& r, const Maybe& noise, const Tensor& x) {
    if (r.n == 0 || !noise.has_value()) return;
    require(noise->is_cpu() && same_layout(x, *noise), "noise: not like x");
    s.noise = address(*noise);
    s.noise_dtype = dtype_of(*noise);
}

// Reads x from another tensor of its kind.
void set_source(SolverStep& s, const Tensor& source, const Tensor& x) {
    require_float(source, x, "source: it must be float32, laid out like x");
    const int64_t numel = x.numel();
    const auto* from = static_cast<const float*>(source.data_ptr());
    require(
        numel == 0 || std::less_equal<>()(from + numel, s.x) || std::less_equal<>()(s.x + numel, from),
        "source: it must not overlap x");
    s.x = from;
}

SolverStep gather(const Row& r, const Inputs& in) {
    const Tensor& x = in.x;
    require(
        x.scalar_type() == ScalarType::Float && x.is_cpu() && x.dim() >= 1, "x: it must be float32 [B, ...]");
    require(is_dense(x), "x: it must be dense, the batch outermost: pass x.contiguous()");
    SolverStep s = {};
    s.x = static_cast<const float*>(x.data_ptr());
    s.sample_size = x.size(0) ? x.numel() / x.size(0) : 0;
    s.anchor = weighed(r.b, in.anchor, x, "anchor: not like x");
    require(!in.noise || !in.seeds, "give noise or seeds to draw it from, not both");
    set_noise(s, r, in.noise, x);
    if (r.n != 0 && in.seeds) s.seeds = seeds_of(in.seeds, x);
    s.mask = weighed(1.0, in.mask, x, "mask: not like x");
    s.known = weighed(in.mask ? r.alpha : 1.0, in.known, x, "known: not like x");
    s.known_noise = weighed(in.mask ? r.sigma : 1.0, in.known_noise, x, "known_noise: not like x");
    s.has_output = in.output.has_value();
    if (r.call == 0) return s;
    if (r.w != 0) s.bound = per_sample(in.bound, x);
    if (!reads_output(r) || !s.has_output) return s;
    s.gain = per_sample(in.gain, x);
    const Outputs model = model_outputs(r, *in.output, in.uncond, x);
    s.output = model.cond, s.uncond = model.uncond, s.output_dtype = model.dtype;
    return s;
}

// The kernel over [begin, end), its noise drawn piece by piece.
void run_drawing(SolverStep s, uint64_t stream, int64_t begin, int64_t end) {
    const Kernels& k = kernels();
    float drawn[kDrawn];
    for (int64_t i = begin, stop; i < end; i = stop) {
        const int64_t sample = i / s.sample_size, first = i % s.sample_size;
        stop = std::min({i + kDrawn, (sample + 1) * s.sample_size, end});
        k.counter_normal(static_cast<uint64_t>(s.seeds[sample]), stream, first, stop - i, drawn);
        s.noise = drawn - i;
        s.noise_dtype = Dtype::f32;
        k.solver_step(s, i, stop);
    }
}

void run(const SolverStep& s, int64_t row, int64_t numel) {
    if (s.seeds)
        return run_parallel(numel, kBlock, kGrain / 8, [&](int64_t begin, int64_t end) {
            run_drawing(s, row + 1, begin, end);
        });
    const auto kernel = kernels().solver_step;
    run_parallel(numel, kBlock, kGrain, [&](int64_t begin, int64_t end) { kernel(s, begin, end); });
}

void settle_and_run(SolverStep& s, const Row& r, int64_t row, int64_t numel) {
    const char* missing = settle(s, r);
    if (missing) require(false, missing);
    run(s, row, numel);
}

void set_input(SolverStep& s, const Tensor& input, const Tensor& x, bool doubled) {
    s.input = input.data_ptr();
    s.input_dtype = dtype_of(input);
    if (doubled) s.input_twin = static_cast<char*>(s.input) + x.numel() * width_of(s.input_dtype);
}

// Where the values of the ring lie that the row reads and writes.
void set_ring(SolverStep& s, const Row& r, float* ring, int64_t slots, int64_t numel) {
    const int64_t slot = static_cast<int64_t>(r.slot);
    const auto at = [&](int64_t j) { return ring + ((slot - j) % slots + slots) % slots * numel; };
    s.h1 = at(1), s.h2 = at(2), s.h3 = at(3);
    if (r.call != 0) s.value = at(0);
}

Tensor empty_like(const Tensor& x, ScalarType type, bool doubled) {
    auto sizes = std::vector<int64_t>(x.sizes().begin(), x.sizes().end());
    auto strides = std::vector<int64_t>(x.strides().begin(), x.strides().end());
    if (sizes[0] == 1) strides[0] = x.numel();  // which may be anything where there is but one
    if (doubled) sizes[0] *= 2;
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        sizes.size(), sizes.data(), strides.data(), static_cast<int32_t>(type), aoti_torch_device_type_cpu(),
        0, &handle));
    return Tensor(handle);
}

std::tuple<Tensor, Tensor, Tensor> solver_step(
    const Tensor& x, const Maybe& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& anchor, const Maybe& h1, const Maybe& h2, const Maybe& h3, const Maybe& noise,
    const Maybe& bound, const Maybe& gain, const Maybe& mask, const Maybe& known, const Maybe& known_noise,
    const Maybe& seeds, ScalarType input_dtype, bool doubled) {
    const int64_t row = row_number(table, index);
    const Row& r = row_of(table, row);
    SolverStep s =
        gather(r, {x, output, uncond, anchor, noise, bound, gain, mask, known, known_noise, seeds});
    s.h1 = weighed(r.c1, h1, x, "history: not like x");
    s.h2 = weighed(r.c2, h2, x, "history: not like x");
    s.h3 = weighed(r.c3, h3, x, "history: not like x");
    Tensor next = empty_like(x, ScalarType::Float, false), input = empty_like(x, input_dtype, doubled);
    Tensor value = output ? empty_like(x, ScalarType::Float, false)
                          : torch::stable::new_empty(x, std::vector<int64_t>{0});
    if (output && r.call == 0) torch::stable::zero_(value);
    s.x_next = static_cast<float*>(next.data_ptr());
    s.value = r.call != 0 && output ? static_cast<float*>(value.data_ptr()) : nullptr;
    set_input(s, input, x, doubled);
    settle_and_run(s, r, row, x.numel());
    return {next, value, input};
}

void require_ring(const Tensor& history, const Tensor& x) {
    const int64_t numel = x.numel(), slots = history.dim() ? history.size(0) : 0;
    require(
        history.scalar_type() == ScalarType::Float && history.is_cpu() && slots > 0 &&
            same_layout(x, history, 1) && (slots == 1 || numel == 0 || history.stride(0) == numel),
        "history: it must be float32 [S, *x.shape], each slot laid out like x");
}

void require_input(const Tensor& input, const Tensor& x, bool doubled) {
    require(
        input.is_cpu() && input.numel() == x.numel() * (1 + doubled), "input: it must hold x once or twice");
    for (int64_t i = 0; i < x.dim(); ++i)
        require(
            (i == 0 || input.size(i) == x.size(i)) && (input.size(i) == 1 || input.stride(i) == x.stride(i) ||
                                                       (x.size(i) == 1 && input.stride(i) == x.numel())),
            "input: it must be laid out like x");
}

void solver_step_inplace(
    const Tensor& x, const Maybe& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& anchor, const Maybe& history, const Maybe& noise, const Maybe& bound, const Maybe& gain,
    const Maybe& mask, const Maybe& known, const Maybe& known_noise, const Maybe& seeds, const Maybe& source,
    const Maybe& input) {
    const int64_t row = row_number(table, index);
    const Row& r = row_of(table, row);
    SolverStep s =
        gather(r, {x, output, uncond, anchor, noise, bound, gain, mask, known, known_noise, seeds});
    s.x_next = static_cast<float*>(x.data_ptr());
    if (source) set_source(s, *source, x);
    if (history) {
        require_ring(*history, x);
        set_ring(s, r, static_cast<float*>(address(*history)), history->size(0), x.numel());
    }
    if (anchor && r.accept != 0) {
        require_float(*anchor, x, "anchor: it must be float32, laid out like x");
        s.anchor_next = static_cast<float*>(anchor->data_ptr());
    }
    if (input) {
        const bool doubled = input->dim() > 0 && input->size(0) != x.size(0);
        require_input(*input, x, doubled);
        set_input(s, *input, x, doubled);
    }
    settle_and_run(s, r, row, x.numel());
}

const char* step(const FastdiffRun& run_of, const FastdiffRow& with) {
    const FastdiffRun& f = run_of;
    if (with.row < 0 || with.row >= f.rows) return "index: there is no such row in the table";
    const Row& r = reinterpret_cast<const Row*>(f.table)[with.row];
    SolverStep s = {};
    s.x = with.x ? with.source : f.x;
    s.x_next = with.x ? with.x : f.x;
    s.sample_size = f.numel / f.images;
    s.anchor = with.x ? with.anchor : f.anchor;
    if (r.accept != 0 && with.x) return "a row that writes its anchor has its state in place";
    if (r.accept != 0) s.anchor_next = f.anchor;
    float* history = with.x ? with.history : f.history;
    if (history) set_ring(s, r, history, f.slots, f.numel);
    s.input = with.x ? with.input : f.input;
    s.input_dtype = static_cast<Dtype>(f.input_type);
    if (f.copies == 2) s.input_twin = static_cast<char*>(f.input) + f.numel * width_of(s.input_dtype);
    s.mask = f.mask, s.known = f.known, s.known_noise = f.known_noise, s.seeds = f.seeds;
    s.output = with.output, s.uncond = with.uncond, s.output_dtype = static_cast<Dtype>(with.type);
    s.has_output = with.output;
    s.noise = with.noise, s.noise_dtype = static_cast<Dtype>(with.noise_type);
    s.bound = with.bound, s.gain = with.gain;
    const char* missing = settle(s, r);
    if (!missing) run(s, with.row, f.numel);
    return missing;
}

}  // namespace
}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) const char* FASTDIFF_STEP(
    const FastdiffRun* run, const FastdiffRow* row) {
    try {
        return fastdiff::step(*run, *row);
    } catch (const std::exception&) {
        return "the step failed";
    }
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("solver_step", TORCH_BOX(&fastdiff::solver_step));
    library.impl("solver_step_", TORCH_BOX(&fastdiff::solver_step_inplace));
}
