// A row of a plan's table, and how it settles what a step reads. No torch.
#pragma once

#include "kernels.h"

namespace fastdiff {

struct Row {
    double p, q, lo, hi, u, w, a, b, c0, c1, c2, c3, n, k, g, g_uncond, call, slot, accept, alpha, sigma,
        spare;
};
static_assert(sizeof(Row) == 22 * sizeof(double));  // fastdiff.reference.COLUMNS

inline int64_t width_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// The row's weights, multiplied out in float64 where nothing stands between them: q into g always, w and u
// into p and g where nothing is clamped.
inline void set_weights(SolverStep& s, const Row& r) {
    s.call = r.call != 0;
    s.lo = r.lo, s.hi = r.hi, s.k = r.k, s.n = r.n, s.alpha = r.alpha, s.sigma = r.sigma;
    s.a = r.a, s.b = r.b, s.c0 = r.c0, s.c1 = r.c1, s.c2 = r.c2, s.c3 = r.c3;
    const bool finite = r.lo > -__builtin_inf() || r.hi < __builtin_inf();
    s.clamps = r.w != 0 && (s.bound || finite);
    const double scale = s.clamps ? 1.0 : r.w;
    s.p = s.clamps ? r.p : r.w * r.p + r.u;
    s.g = scale * r.q * r.g, s.g_uncond = scale * r.q * r.g_uncond;
    s.w = s.clamps ? r.w : 1.0;
    s.u = s.clamps ? r.u : 0.0;
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
    const double read = s.call && r.w != 0 ? r.q : 0.0;
    if (s.call && !s.has_output) return "the row has a model output: pass output";
    if (!settled(s.output, read * r.g)) return "the row reads the model's output: pass output";
    if (!settled(s.uncond, read * r.g_uncond)) return "the row reads the unconditional output: pass uncond";
    if (read == 0) s.gain = nullptr;
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
