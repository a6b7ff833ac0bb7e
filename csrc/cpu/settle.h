// A row of a plan's table, and how it settles what a step reads. No torch.
#pragma once

#include <cmath>

#include "kernels.h"

namespace fastdiff {

struct Row {
    double p, q, lo, hi, u, w, a, b, c0, c1, c2, c3, n, k, g, g_uncond, call, slot, accept, alpha, sigma, f;
};
static_assert(sizeof(Row) == 22 * sizeof(double));  // fastdiff.reference.COLUMNS

inline int64_t width_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

inline bool reads_output(const Row& r) { return r.call != 0 && ((r.w != 0 && r.q != 0) || r.f != 0); }

// The row's weights, multiplied out in float64: w and u into p and q where nothing is clamped, g into q and f
// where it weighs the only branch. Two branches are summed first, by weights of their own: what they mostly
// cancel to is then as accurate as the outputs, whose products with g are often exact in float32. Where there
// is a clamp, w goes into its limits, so that a value there is exactly w*lo, w*hi or, by a bound, w.
inline void set_weights(SolverStep& s, const Row& r) {
    s.call = r.call != 0;
    s.k = r.k, s.n = r.n, s.alpha = r.alpha, s.sigma = r.sigma;
    s.a = r.a, s.b = r.b, s.c0 = r.c0, s.c1 = r.c1, s.c2 = r.c2, s.c3 = r.c3;
    const bool finite = r.lo > -__builtin_inf() || r.hi < __builtin_inf();
    s.clamps = r.w != 0 && (s.bound || finite);
    const double lo = r.w * (s.bound ? -1.0 : r.lo), hi = r.w * (s.bound ? 1.0 : r.hi);
    s.lo = r.w < 0 ? hi : lo, s.hi = r.w < 0 ? lo : hi;
    s.u = s.clamps ? r.u : 0.0;
    s.p = s.clamps ? r.p : r.w * r.p + r.u;
    const double single = r.g_uncond == 0 ? r.g : 1.0;
    s.g = r.g_uncond == 0 ? 1.0 : r.g, s.g_uncond = r.g_uncond;
    s.exact = {s.clamps ? single * r.q : single * r.q * r.w, single * r.f, s.clamps ? r.w : 1.0};
}

// Drops the pointer if its weight is 0, so that it is never read; false if it is missing.
template <class T>
inline bool settled(const T*& pointer, double weight) {
    if (weight == 0) pointer = nullptr;
    return weight == 0 || pointer;
}

// Sets the weights of a step whose pointers are those of all the tensors given. Returns what is missing, or
// null.
inline const char* settle(SolverStep& s, const Row& r) {
    s.bound = r.call != 0 && r.w != 0 ? s.bound : nullptr;
    set_weights(s, r);
    const double read = reads_output(r) ? 1.0 : 0.0;
    if (s.call && !s.has_output) return "the row has a model output: pass output";
    if (!settled(s.output, read * r.g)) return "the row reads the model's output: pass output";
    if (!settled(s.uncond, read * r.g_uncond)) return "the row reads the unconditional output: pass uncond";
    if (read == 0) s.gain = nullptr;
    const double reads_x = s.call ? std::abs(s.p) + std::abs(s.u) : 0.0;
    settled(s.x, std::abs(r.a) + reads_x);
    if (!settled(s.anchor, r.b)) return "the row reads the anchor: pass anchor";
    if (!settled(s.h1, r.c1) || !settled(s.h2, r.c2) || !settled(s.h3, r.c3))
        return "the row reads the history: pass more of it";
    if (s.noise || r.n == 0) s.seeds = nullptr;
    if (!s.seeds && !settled(s.noise, r.n)) return "the row adds noise: pass noise or seeds";
    if (!s.mask && (s.known || s.known_noise)) return "known and known_noise need a mask: pass mask";
    if (s.mask && !settled(s.known, r.alpha)) return "the mask keeps what is known: pass known";
    if (s.mask && !settled(s.known_noise, r.sigma)) return "what is known is noised: pass known_noise";
    return nullptr;
}

}  // namespace fastdiff
