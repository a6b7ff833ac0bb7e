// rescale_gain on the CPU: the deviations of each sample's output and of its guided mixture, in one read.
#include <cmath>

#include "row.h"

namespace fastdiff {
namespace {

constexpr int64_t kChunk =
    512;  // few enough for sums in float32; read twice, the second time from the first cache

// Joins the deviations of n values and of m more (Chan, Golub and LeVeque).
void join(double& mean, double& squares, int64_t n, double other, double more, int64_t m) {
    const double apart = other - mean, share = static_cast<double>(m) / (n + m);
    mean += apart * share;
    squares += more + apart * apart * share * n;
}

Deviations joined(const Deviations* chunks, int64_t n) {
    Deviations total = chunks[0];
    for (int64_t i = 1; i * kChunk < n; ++i) {
        const int64_t before = i * kChunk, more = std::min(kChunk, n - before);
        const Deviations& c = chunks[i];
        join(total.output_mean, total.output_squares, before, c.output_mean, c.output_squares, more);
        join(total.mean, total.squares, before, c.mean, c.squares, more);
    }
    return total;
}

// The output alone and the guided mixture, as of the first sample.
struct Branches {
    Mixture output, guided;
    int64_t batch, n;
};

Mixture moved(Mixture m, int64_t elements) {
    const int64_t bytes = elements * width_of(m.dtype);
    if (m.output) m.output = static_cast<const char*>(m.output) + bytes;
    if (m.uncond) m.uncond = static_cast<const char*>(m.uncond) + bytes;
    return m;
}

Branches branches_of(const Row& r, const Tensor& output, const Maybe& uncond) {
    require(
        output.is_cpu() && output.dim() >= 1 && is_dense(output) && (uncond || output.size(0) % 2 == 0),
        "output: it must be dense, [B, ...], or [2B, ...] without uncond");
    Branches b = {};
    const int64_t numel = uncond ? output.numel() : output.numel() / 2;
    b.batch = uncond ? output.size(0) : output.size(0) / 2;
    b.n = b.batch ? numel / b.batch : 0;
    const Dtype dtype = dtype_of(output);
    const char* cond = static_cast<const char*>(output.data_ptr());
    const char* other = cond + numel * width_of(dtype);
    if (uncond) {
        require(
            uncond->is_cpu() && same_layout(output, *uncond) && dtype_of(*uncond) == dtype,
            "uncond: it must be laid out like output, in its dtype");
        other = static_cast<const char*>(uncond->data_ptr());
    }
    b.output.q = b.guided.q = 1.0f;
    b.output.g = 1.0f, b.output.output = cond, b.output.dtype = dtype;
    b.guided.g = r.g, b.guided.g_uncond = r.g_uncond, b.guided.dtype = dtype;
    if (r.g != 0) b.guided.output = cond;
    if (r.g_uncond != 0) b.guided.uncond = other;
    return b;
}

Tensor rescale_gain(
    const Tensor& output, const Maybe& uncond, const Tensor& table, const Tensor& index, double rescale) {
    const Branches b = branches_of(row_of(table, row_number(table, index)), output, uncond);
    Tensor gains = torch::stable::new_empty(output, std::vector<int64_t>{b.batch}, ScalarType::Float);
    float* found = static_cast<float*>(gains.data_ptr());
    std::fill_n(found, b.batch, 1.0f);
    if (b.n == 0) return gains;
    const int64_t chunks = (b.n + kChunk - 1) / kChunk, grain = 32768 / std::min(b.n, kChunk);
    std::vector<Deviations> blocks(b.batch * chunks);
    run_parallel(b.batch * chunks, 1, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t offset = i / chunks * b.n, at = i % chunks * kChunk;
            blocks[i] = kernels().deviations(
                moved(b.output, offset), moved(b.guided, offset), at, std::min(at + kChunk, b.n));
        }
    });
    for (int64_t i = 0; i < b.batch; ++i) {
        const Deviations m = joined(&blocks[i * chunks], b.n);
        if (m.squares > 0)
            found[i] = static_cast<float>(rescale * std::sqrt(m.output_squares / m.squares) + 1.0 - rescale);
    }
    return gains;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("rescale_gain", TORCH_BOX(&fastdiff::rescale_gain));
}
