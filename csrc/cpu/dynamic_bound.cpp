// dynamic_bound on the CPU: two neighbouring order statistics of each sample's magnitudes. A small draw of
// the magnitudes gives a window that almost surely holds both; one pass counts what lies below it and keeps
// what lies in it; selecting among the few kept is cheap. Where the window misses, all are selected from:
// the result is always exact.
#include <cmath>
#include <limits>
#include <memory>

#include "row.h"

namespace fastdiff {
namespace {

constexpr int64_t kChunk = 32768, kSmall = 4096, kGrain = 32768;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Window {
    float lo, hi;
};

// The two order statistics, 0 the smallest, between which the quantile lies, and how far from the first.
struct Ranks {
    int64_t low, high;
    float part;
};

Ranks ranks_of(double quantile, int64_t n) {
    const double place = quantile * static_cast<double>(n - 1);
    const int64_t low = static_cast<int64_t>(place);
    return {low, std::min(low + 1, n - 1), static_cast<float>(place - low)};
}

float between(float low, float high, float part) {
    return part == 0 || low == high ? low : low + part * (high - low);
}

// Both order statistics of n values, none of them NaN, which it reorders.
float select(float* values, int64_t n, const Ranks& ranks) {
    std::nth_element(values, values + ranks.low, values + n);
    const float low = values[ranks.low];
    if (ranks.high == ranks.low) return low;
    return between(low, *std::min_element(values + ranks.high, values + n), ranks.part);
}

float select_from_all(const Mixture& m, int64_t n, const Ranks& ranks) {
    std::unique_ptr<float[]> all(new float[n]);
    kernels().magnitudes(m, 0, n, all.get());
    for (int64_t i = 0; i < n; ++i)
        if (std::isnan(all[i])) return std::numeric_limits<float>::quiet_NaN();
    return select(all.get(), n, ranks);
}

// Where both order statistics should lie, from `drawn` magnitudes at places that repeat no pattern of the
// image.
Window window_of(const Mixture& m, int64_t n, const Ranks& ranks) {
    const int64_t drawn = std::min<int64_t>(512 + n / 1024, 4096), step = n / drawn;
    std::vector<float> values(drawn);
    uint32_t random = 1;
    for (int64_t j = 0; j < drawn; ++j) {
        random = random * 1664525u + 1013904223u;
        const int64_t at = j * step + static_cast<int64_t>(random >> 8) % step;
        kernels().magnitudes(m, at, at + 1, &values[j]);
        if (std::isnan(values[j])) values[j] = kInfinity;
    }
    const double q = static_cast<double>(ranks.low) / (n - 1);
    const double spread = 4.0 * std::sqrt(drawn * q * (1.0 - q)) + 4.0;
    const int64_t first = static_cast<int64_t>(q * drawn - spread);
    const int64_t last = static_cast<int64_t>(q * drawn + spread);
    const auto rank = [&](int64_t j) {
        std::nth_element(values.begin(), values.begin() + j, values.end());
        return values[j];
    };
    return {first <= 0 ? 0.0f : rank(first), last >= drawn - 1 ? kInfinity : rank(last)};
}

// One sample's chunks, split about its window; `inside` has room for every element.
float bound_from(const Mixture& m, int64_t n, const Ranks& ranks, const Split* chunks, float* inside) {
    Split total = {};
    for (int64_t i = 0; i * kChunk < n; ++i) {
        std::copy_n(inside + i * kChunk, chunks[i].inside, inside + total.inside);
        total.below += chunks[i].below, total.inside += chunks[i].inside, total.nans += chunks[i].nans;
    }
    if (total.nans) return std::numeric_limits<float>::quiet_NaN();
    const Ranks within = {ranks.low - total.below, ranks.high - total.below, ranks.part};
    if (within.low < 0 || within.high >= total.inside) return select_from_all(m, n, ranks);
    return select(inside, total.inside, within);
}

Mixture of_sample(Mixture m, double q, const float* gain, int64_t sample, int64_t n) {
    const int64_t offset = sample * n * width_of(m.dtype);
    if (m.x) m.x += sample * n;
    if (m.output) m.output = static_cast<const char*>(m.output) + offset;
    if (m.uncond) m.uncond = static_cast<const char*>(m.uncond) + offset;
    m.q = gain ? q * gain[sample] : q;
    return m;
}

void find_bounds(const std::vector<Mixture>& samples, int64_t n, const Ranks& ranks, float* bounds) {
    const int64_t batch = samples.size(), chunks = (n + kChunk - 1) / kChunk;
    const int64_t grain = std::max<int64_t>(kGrain / n, 1);
    if (n <= kSmall)
        return run_parallel(batch, 1, grain, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) bounds[b] = select_from_all(samples[b], n, ranks);
        });
    std::unique_ptr<float[]> inside(new float[batch * n]);  // of which few pages are touched
    std::vector<Window> windows(batch);
    std::vector<Split> splits(batch * chunks);
    const auto prepare = [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) windows[b] = window_of(samples[b], n, ranks);
    };
    const auto divide = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / chunks, at = i % chunks * kChunk;
            splits[i] = kernels().split(
                samples[b], at, std::min(at + kChunk, n), windows[b].lo, windows[b].hi,
                inside.get() + b * n + at);
        }
    };
    const auto finish = [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            bounds[b] = bound_from(samples[b], n, ranks, &splits[b * chunks], inside.get() + b * n);
    };
    if (batch % torch::stable::get_num_threads() == 0)  // whole samples: the threads meet once
        return run_parallel(batch, 1, grain, [&](int64_t begin, int64_t end) {
            prepare(begin, end);
            divide(begin * chunks, end * chunks);
            finish(begin, end);
        });
    prepare(0, batch);
    run_parallel(batch * chunks, 1, 1, divide);
    finish(0, batch);
}

Tensor dynamic_bound(
    const Tensor& x, const Tensor& output, const Tensor& table, const Tensor& index, const Maybe& uncond,
    const Maybe& gain, double quantile, double most) {
    const Row& r = row_of(table, row_number(table, index));
    require(
        x.scalar_type() == ScalarType::Float && x.is_cpu() && x.dim() >= 1 && is_dense(x),
        "x: it must be dense float32 [B, ...]");
    const int64_t batch = x.size(0), n = batch ? x.numel() / batch : 0;
    Tensor bounds = torch::stable::new_empty(x, std::vector<int64_t>{batch});
    float* found = static_cast<float*>(bounds.data_ptr());
    std::fill_n(found, batch, 1.0f);
    if (x.numel() == 0) return bounds;
    Mixture m = {};
    m.p = r.p, m.g = r.g_uncond == 0 ? 1.0 : r.g, m.g_uncond = r.g_uncond;
    const double q = r.g_uncond == 0 ? r.q * r.g : r.q;  // as in set_weights
    if (r.p != 0) m.x = static_cast<const float*>(x.data_ptr());
    const float* gains = nullptr;
    if (r.q != 0) {
        const Outputs model = model_outputs(r, output, uncond, x);
        m.output = model.cond, m.uncond = model.uncond, m.dtype = model.dtype;
        gains = per_sample(gain, x);
    }
    std::vector<Mixture> samples;
    for (int64_t b = 0; b < batch; ++b) samples.push_back(of_sample(m, q, gains, b, n));
    find_bounds(samples, n, ranks_of(quantile, n), found);
    for (int64_t b = 0; b < batch; ++b)
        if (!std::isnan(found[b])) found[b] = std::min(std::max(found[b], 1.0f), static_cast<float>(most));
    return bounds;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("dynamic_bound", TORCH_BOX(&fastdiff::dynamic_bound));
}
