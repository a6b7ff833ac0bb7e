// A row of the table as one thread of a block reads it: multiplied out in float64, checked against what was
// given, and left in shared memory for the others.
#pragma once

#include "solver_step.h"

namespace fastdiff::cuda {

struct RowWeights {
    int64_t history[3];  // where in the ring these begin; offsets, since the compiler would not know a
                         // pointer from
    int64_t value;       // shared memory to be one to global memory
    int64_t stream;      // of the noise drawn in the kernel
    float p, q, g, g_uncond, f, lo, hi, u, w, a, b, c0, c[3], n, k, alpha, sigma;
    bool call, clamps, accept;
};

constexpr double kInfinity = __builtin_huge_val();

__device__ inline float not_a_number() { return __int_as_float(0x7FFFFFFF); }

// w and u go into p and q where nothing is clamped. The branches keep weights of their own: F may be weighed
// twice, by q and by f.
__device__ inline void fold(const Row& r, bool bounded, RowWeights& w) {
    const bool finite = r.lo > -kInfinity || r.hi < kInfinity;
    w.call = r.call != 0;
    w.accept = r.accept != 0;
    w.clamps = r.w != 0 && (bounded || finite);
    const double scale = w.clamps ? 1.0 : r.w;
    w.p = static_cast<float>(w.clamps ? r.p : r.w * r.p + r.u);
    w.q = static_cast<float>(w.call ? scale * r.q : 0.0);
    w.f = static_cast<float>(w.call ? r.f : 0.0);
    const bool guided = w.call && ((r.w != 0 && r.q != 0) || r.f != 0);
    w.g = static_cast<float>(guided ? r.g : 0.0);
    w.g_uncond = static_cast<float>(guided ? r.g_uncond : 0.0);
    w.w = static_cast<float>(r.w), w.u = static_cast<float>(r.u);
    w.lo = static_cast<float>(r.lo), w.hi = static_cast<float>(r.hi);
    w.a = static_cast<float>(r.a), w.b = static_cast<float>(r.b);
    w.c0 = static_cast<float>(w.call ? r.c0 : 0.0);
    w.c[0] = static_cast<float>(r.c1), w.c[1] = static_cast<float>(r.c2), w.c[2] = static_cast<float>(r.c3);
    w.n = static_cast<float>(r.n), w.k = static_cast<float>(r.k);
    w.alpha = static_cast<float>(r.alpha), w.sigma = static_cast<float>(r.sigma);
}

// One division, of 32 bits: the whole block waits for the thread that does this.
__device__ inline void place(const SolverStep& s, int slot, RowWeights& w) {
    if (!s.ring) return;
    slot = (slot % s.slots + s.slots) % s.slots;
    w.value = slot * s.numel;
    for (int j = 0; j < 3; ++j) {
        slot = slot == 0 ? s.slots - 1 : slot - 1;
        w.history[j] = slot * s.numel;
    }
}

// A weight whose tensor is not there becomes 0, and says so.
__device__ inline bool missing(float& weight, const void* tensor) {
    if (weight == 0 || tensor) return false;
    weight = 0;
    return true;
}

__device__ inline bool lacks_a_tensor(const SolverStep& s, RowWeights& w) {
    bool absent = w.call && !s.output;
    absent |= missing(w.g, s.output) | missing(w.g_uncond, s.uncond) | missing(w.b, s.anchor);
    for (int j = 0; j < 3; ++j) absent |= missing(w.c[j], s.ring ? s.ring : s.history[j]);
    absent |= missing(w.n, s.noise ? s.noise : s.seeds);
    return absent | (s.mask && (missing(w.alpha, s.known) | missing(w.sigma, s.known_noise)));
}

// Fetches a line of the table, a column a thread, and waits for it; false where there is no such line. Every
// thread of the block must call it. row: in shared memory.
__device__ inline bool fetch_row(const Row* table, int64_t rows, int64_t index, Row& row) {
    constexpr int kColumns = sizeof(Row) / sizeof(double);
    const bool found = index >= 0 && index < rows;
    if (threadIdx.x < kColumns)
        reinterpret_cast<double*>(&row)[threadIdx.x] =
            found ? reinterpret_cast<const double*>(table + index)[threadIdx.x] : 0.0;
    __syncthreads();
    return found;
}

// The block's weights, after a barrier that every thread of it must reach. row, w: in shared memory.
__device__ inline void read_row(const SolverStep& s, Row& row, RowWeights& w) {
    const int64_t index = *s.index;
    const bool found = fetch_row(s.table, s.rows, index, row);
    if (threadIdx.x == 0) {
        fold(row, s.bound != nullptr, w);
        place(s, static_cast<int>(row.slot), w);
        w.stream = index + 1;
        if (lacks_a_tensor(s, w) || !found) w.a = w.k = not_a_number();
    }
    __syncthreads();
}

// What the reductions before a step need of its row: p*x + q*F, or F alone, F = g*output + g_uncond*uncond.
// NaN where the line or uncond is missing.
struct GuidedWeights {
    float p, q, g, g_uncond;
};

__device__ inline void read_guided(
    const Row* table, int64_t rows, const int64_t* index, bool by_q, const void* uncond, Row& row,
    GuidedWeights& w) {
    const bool found = fetch_row(table, rows, *index, row);
    if (threadIdx.x == 0) {
        const bool reads = !by_q || row.q != 0;
        w.p = static_cast<float>(row.p), w.q = static_cast<float>(row.q);
        w.g = static_cast<float>(reads ? row.g : 0.0);
        w.g_uncond = static_cast<float>(reads ? row.g_uncond : 0.0);
        if (missing(w.g_uncond, uncond) || !found) w.p = w.g = not_a_number();
    }
    __syncthreads();
}

}  // namespace fastdiff::cuda
