// What the CPU kernels take: plain pointers and sizes, no torch. Every level (instruction set) fills one
// table of these functions from the same source; levels.cpp picks the table once, at run time.
#pragma once

#include <cstdint>

#include "group_norm_silu_kernels.h"

namespace fastdiff {

enum class Dtype : int { f32, f16, bf16 };

// x = alpha*x0 + sigma*noise and velocity = alpha*noise - sigma*x0 for elements [begin, end), x0, x, velocity
// and noise being of `dtype`. drawn: float32, the noise of those elements, drawn[0] being that of `begin`; it
// is rounded to dtype, used as rounded, and written to noise. Without drawn, noise is read. velocity, x may
// be null (without x, the drawn noise is only written).
struct QSample {
    const void* x0;
    void* noise;
    void* x;
    void* velocity;
    Dtype dtype;
    const float* alpha;
    const float* sigma;
    int64_t alpha_step, sigma_step;
    int64_t sample_size;
    bool streams;  // results go past the caches, which could not hold them
};

// Weights in float64, until a sample's gain (in q and f) and 1/bound (in w) are multiplied in.
struct SampleWeights {
    double q, f, w;
};

// One row of a plan over dense memory, read and written element by element:
//   G      = g*output + g_uncond*uncond
//   value  = clamp(w*(p*x + q*G), lo, hi) + u*x     (lo and hi have been multiplied by w, too)
//   x_next = f*G + c0*value + a*x + ...
// and input as in fastdiff/ops/solver_step.py. A pointer is null where the row does not read or write that
// tensor; x_next may be x, and value may be one of the h (each element is read before it is written).
struct SolverStep {
    SampleWeights exact;
    float q, f, w;  // the same for one sample; set by the kernel
    float p, g, g_uncond, lo, hi, u, a, b, c0, c1, c2, c3, n, k, alpha, sigma;
    const float* x;
    const void* output;
    const void* uncond;
    const float* anchor;
    const float* h1;
    const float* h2;
    const float* h3;
    const void* noise;
    const float* bound;  // [B]
    const float* gain;   // [B]
    const float* mask;
    const float* known;
    const float* known_noise;
    const int64_t* seeds;  // [B], instead of noise; the kernel is given what was drawn from them as noise
    float* x_next;
    float* value;
    float* anchor_next;
    void* input;
    void* input_twin;  // the second half of a doubled batch
    Dtype output_dtype;
    Dtype input_dtype;
    Dtype noise_dtype;
    bool call;
    bool has_output;
    bool clamps;  // lo or hi is finite, or there is a bound
    int64_t sample_size;
};

// p*x + q*(g*output + g_uncond*uncond) of one sample, never stored; a pointer is null where its weight is 0.
struct Mixture {
    float p, q, g, g_uncond;
    const float* x;
    const void* output;
    const void* uncond;
    Dtype dtype;
};

// How many magnitudes of a mixture lie below a window and in it, and how many are NaN.
struct Split {
    int64_t below, inside, nans;
};

// Means and sums of squared deviations of a model's output and of the guided mixture.
struct Deviations {
    double output_mean, output_squares, mean, squares;
};

// Each works on the half-open range [begin, end) of what it is parallel over.
struct Kernels {
    const char* name;
    void (*q_sample)(const QSample&, const float* drawn, int64_t begin, int64_t end);  // elements
    void (*solver_step)(const SolverStep&, int64_t begin, int64_t end);                // elements
    void (*magnitudes)(const Mixture&, int64_t begin, int64_t end, float* out);        // elements
    Split (*split)(const Mixture&, int64_t begin, int64_t end, float lo, float hi, float* inside);
    Deviations (*deviations)(const Mixture& output, const Mixture& guided, int64_t begin, int64_t end);
    GroupNormKernels group_norm_silu;
    // The next 624 words of mt19937, not yet tempered, in place of the last.
    void (*mt19937_advance)(uint32_t* words);
    // torch.randn's values from untempered words, 16 a block.
    void (*normal_blocks)(const uint32_t* words, int64_t blocks, float* out);
    // Values [first, first + count) of a stream of fastdiff/counter.py.
    void (*counter_normal)(uint64_t seed, uint64_t stream, int64_t first, int64_t count, float* out);
};

// The table in use: the widest level that this processor has, unless FASTDIFF_ISA or fastdiff_set_isa says
// otherwise.
const Kernels& kernels();

}  // namespace fastdiff
