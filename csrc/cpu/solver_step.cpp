// solver_step and solver_step_ on the CPU: one row of the table turned into pointers and weights for one
// kernel.
#include "tensors.h"

namespace fastdiff {
namespace {

constexpr int64_t kColumns = 22;  // fastdiff.reference.COLUMNS
constexpr int64_t kBlock = 1024, kGrain = 65536;

struct Row {
    double p, q, lo, hi, u, w, a, b, c0, c1, c2, c3, n, k, g, g_uncond, call, slot, accept, alpha, sigma,
        spare;
};
static_assert(sizeof(Row) == kColumns * sizeof(double));

Row read_row(const Tensor& table, const Tensor& index) {
    require(
        table.scalar_type() == ScalarType::Double && table.dim() == 2 && table.size(1) == kColumns &&
            table.is_contiguous() && table.is_cpu(),
        "table: it must be contiguous float64 [N, 22] on the CPU");
    require(
        index.scalar_type() == ScalarType::Long && index.numel() == 1 && index.is_cpu(),
        "index: it must be an int64 scalar on the CPU");
    const int64_t row = *static_cast<const int64_t*>(index.data_ptr());
    require(row >= 0 && row < table.size(0), "index: there is no such row in the table");
    return static_cast<const Row*>(table.data_ptr())[row];
}

// The tensor's memory if the weight is not 0, else null: a term of weight 0 is never read.
template <class T = float>
const T* weighed(double weight, const Maybe& t, const Tensor& like, const char* missing, const char* wrong) {
    if (weight == 0) return nullptr;
    require(t.has_value(), missing);
    require_float(*t, like, wrong);
    return static_cast<const T*>(t->data_ptr());
}

int64_t width_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Whether t holds 2B samples, each laid out like those of x [B, ...].
bool is_doubled(const Tensor& t, const Tensor& x) {
    if (t.dim() != x.dim() || t.size(0) != 2 * x.size(0)) return false;
    for (int64_t i = 1; i < x.dim(); ++i)
        if (t.size(i) != x.size(i) || (x.size(i) != 1 && t.stride(i) != x.stride(i))) return false;
    return t.numel() == 0 || t.stride(0) == x.numel() / x.size(0);
}

const void* model_output(double weight, const Maybe& t, const Tensor& x, Dtype dtype, const char* missing) {
    if (weight == 0) return nullptr;
    require(t.has_value(), missing);
    require(
        t->is_cpu() && same_layout(x, *t) && dtype_of(*t) == dtype,
        "output and uncond must have x's shape and layout, and one dtype");
    return t->data_ptr();
}

const float* per_sample(const Maybe& t, const Tensor& x) {
    if (!t.has_value()) return nullptr;
    require(
        t->scalar_type() == ScalarType::Float && t->is_cpu() && t->dim() == 1 && t->size(0) == x.size(0) &&
            t->is_contiguous(),
        "bound and gain must be contiguous float32, one value a sample");
    return static_cast<const float*>(t->data_ptr());
}

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

// The row's weights, multiplied out in float64 where nothing stands between them: q into g always, w and u
// into p and g where nothing is clamped.
SolverStep weights_of(const Row& r, bool bounded) {
    SolverStep s = {};
    s.call = r.call != 0;
    s.lo = r.lo, s.hi = r.hi, s.k = r.k, s.n = r.n;
    s.alpha = r.alpha, s.sigma = r.sigma;
    s.a = r.a, s.b = r.b, s.c0 = r.c0, s.c1 = r.c1, s.c2 = r.c2, s.c3 = r.c3;
    const bool finite = r.lo > -__builtin_inf() || r.hi < __builtin_inf();
    s.clamps = r.w != 0 && (bounded || finite);
    const double scale = s.clamps ? 1.0 : r.w;
    s.p = s.clamps ? r.p : r.w * r.p + r.u;
    s.g = scale * r.q * r.g, s.g_uncond = scale * r.q * r.g_uncond;
    s.w = s.clamps ? r.w : 1.0;
    s.u = s.clamps ? r.u : 0.0;
    return s;
}

void set_outputs(SolverStep& s, const Row& r, const Inputs& in) {
    require(in.output.has_value(), "the row has a model output: pass output");
    if (s.clamps) s.bound = per_sample(in.bound, in.x);
    if (r.q == 0 || r.w == 0) return;
    s.gain = per_sample(in.gain, in.x);
    s.output_dtype = dtype_of(*in.output);
    if (!in.uncond && is_doubled(*in.output, in.x)) {
        require(in.output->is_cpu(), "output must be on the CPU");
        const char* both = static_cast<const char*>(in.output->data_ptr());
        if (r.g != 0) s.output = both;
        if (r.g_uncond != 0) s.uncond = both + in.x.numel() * width_of(s.output_dtype);
        return;
    }
    s.output =
        model_output(r.g, in.output, in.x, s.output_dtype, "the row reads the model's output: pass output");
    s.uncond = model_output(
        r.g_uncond, in.uncond, in.x, s.output_dtype, "the row reads the unconditional output: pass uncond");
}

void set_blend(SolverStep& s, const Row& r, const Inputs& in) {
    if (!in.mask)
        return require(!in.known && !in.known_noise, "known and known_noise need a mask: pass mask");
    s.mask = weighed(1.0, in.mask, in.x, "", "mask: not like x");
    s.known =
        weighed(r.alpha, in.known, in.x, "the mask keeps what is known: pass known", "known: not like x");
    s.known_noise = weighed(
        r.sigma, in.known_noise, in.x, "what is known is noised: pass known_noise",
        "known_noise: not like x");
}

SolverStep prepare(const Row& r, const Inputs& in) {
    const Tensor& x = in.x;
    require(
        x.scalar_type() == ScalarType::Float && x.is_cpu() && x.dim() >= 1, "x: it must be float32 [B, ...]");
    require(is_dense(x), "x: it must be dense, the batch outermost: pass x.contiguous()");
    SolverStep s = weights_of(r, in.bound.has_value());
    s.x = static_cast<const float*>(x.data_ptr());
    s.sample_size = x.size(0) ? x.numel() / x.size(0) : 0;
    s.anchor = weighed(r.b, in.anchor, x, "the row reads the anchor: pass anchor", "anchor: not like x");
    require(!in.seeds, "seeds: draw the noise beforehand");
    s.noise = weighed(r.n, in.noise, x, "the row adds noise: pass noise", "noise: not like x");
    set_blend(s, r, in);
    if (s.call) set_outputs(s, r, in);
    return s;
}

void run(const SolverStep& s, int64_t numel) {
    const auto kernel = kernels().solver_step;
    run_parallel(numel, kBlock, kGrain, [&](int64_t begin, int64_t end) { kernel(s, begin, end); });
}

void set_input(SolverStep& s, const Tensor& input, const Tensor& x, bool doubled) {
    s.input = input.data_ptr();
    s.input_dtype = dtype_of(input);
    if (doubled) s.input_twin = static_cast<char*>(s.input) + x.numel() * width_of(s.input_dtype);
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
    const Row r = read_row(table, index);
    SolverStep s =
        prepare(r, {x, output, uncond, anchor, noise, bound, gain, mask, known, known_noise, seeds});
    constexpr const char* missing = "the row reads the history: pass more of it";
    s.h1 = weighed(r.c1, h1, x, missing, "history: not like x");
    s.h2 = weighed(r.c2, h2, x, missing, "history: not like x");
    s.h3 = weighed(r.c3, h3, x, missing, "history: not like x");
    Tensor next = empty_like(x, ScalarType::Float, false), input = empty_like(x, input_dtype, doubled);
    Tensor value = output ? empty_like(x, ScalarType::Float, false)
                          : torch::stable::new_empty(x, std::vector<int64_t>{0});
    if (output && !s.call) torch::stable::zero_(value);
    s.x_next = static_cast<float*>(next.data_ptr());
    s.value = s.call ? static_cast<float*>(value.data_ptr()) : nullptr;
    set_input(s, input, x, doubled);
    run(s, x.numel());
    return {next, value, input};
}

void solver_step_inplace(
    const Tensor& x, const Maybe& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& anchor, const Maybe& history, const Maybe& noise, const Maybe& bound, const Maybe& gain,
    const Maybe& mask, const Maybe& known, const Maybe& known_noise, const Maybe& seeds, const Maybe& input) {
    const Row r = read_row(table, index);
    SolverStep s =
        prepare(r, {x, output, uncond, anchor, noise, bound, gain, mask, known, known_noise, seeds});
    s.x_next = static_cast<float*>(x.data_ptr());
    if (history) {
        const int64_t numel = x.numel(), slots = history->dim() ? history->size(0) : 0;
        require(
            history->scalar_type() == ScalarType::Float && history->is_cpu() && slots > 0 &&
                same_layout(x, *history, 1) && (slots == 1 || numel == 0 || history->stride(0) == numel),
            "history: it must be float32 [S, *x.shape], each slot laid out like x");
        float* ring = static_cast<float*>(history->data_ptr());
        const int64_t slot = static_cast<int64_t>(r.slot);
        const auto at = [&](int64_t j) { return ring + ((slot - j) % slots + slots) % slots * numel; };
        if (r.c1 != 0) s.h1 = at(1);
        if (r.c2 != 0) s.h2 = at(2);
        if (r.c3 != 0) s.h3 = at(3);
        if (s.call) s.value = at(0);
    } else {
        require(r.c1 == 0 && r.c2 == 0 && r.c3 == 0, "the row reads the history: pass history");
    }
    if (anchor && r.accept != 0) {
        require_float(*anchor, x, "anchor: it must be float32, laid out like x");
        s.anchor_next = static_cast<float*>(anchor->data_ptr());
    }
    if (input) {
        const bool doubled = input->dim() > 0 && input->size(0) != x.size(0);
        require(
            input->is_cpu() && input->numel() == x.numel() * (1 + doubled),
            "input: it must hold x once or twice");
        for (int64_t i = 0; i < x.dim(); ++i)
            require(
                (i == 0 || input->size(i) == x.size(i)) &&
                    (input->size(i) == 1 || input->stride(i) == x.stride(i) ||
                     (x.size(i) == 1 && input->stride(i) == x.numel())),
                "input: it must be laid out like x");
        set_input(s, *input, x, doubled);
    }
    run(s, x.numel());
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("solver_step", TORCH_BOX(&fastdiff::solver_step));
    library.impl("solver_step_", TORCH_BOX(&fastdiff::solver_step_inplace));
}
