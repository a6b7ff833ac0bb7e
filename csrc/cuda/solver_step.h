// One row of a plan in one launch, on the current device (fastdiff/ops/solver_step.py has the formula). The
// row's number and weights are read from device memory, so that one captured graph serves every step and
// schedule.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"

namespace fastdiff::cuda {

// A table's line, in the order of fastdiff.reference.COLUMNS.
struct Row {
    double p, q, lo, hi, u, w, a, b, c0, c1, c2, c3, n, k, g, g_uncond, call, slot, accept, alpha, sigma, f;
};

// Images are dense, laid out alike, and numel elements long; a null pointer is a tensor that was not given.
// x_next may be x, or memory of its own; anchor_next may be anchor, and value may be one of the history:
// every element is read before it is written, by one thread. What a weight of 0 belongs to is not used. A row
// that weighs what is not there, or a row number beyond the table, makes x_next NaN: nothing on a GPU can
// raise.
struct SolverStep {
    const Row* table;  // float64, on the device
    const int64_t* index;
    int64_t rows;
    const float* x;
    const void* output;  // of output_type, uncond too
    const void* uncond;
    const float* anchor;
    const float* history[3];  // newest first; with a ring they are found in it
    float* ring;              // [slots, numel]: value goes to slot % slots, h_j comes from (slot - j) % slots
    int slots;
    const void* noise;   // of noise_type
    const float* bound;  // one a sample, gain and seeds too
    const float* gain;
    const float* mask;
    const float* known;
    const float* known_noise;
    const int64_t* seeds;  // read where noise is null: counter.cuh, stream row + 1
    float* x_next;
    float* value;  // zeros where the row has no model output; null with a ring
    float* anchor_next;
    void* input;  // of input_type
    void* input_twin;
    int64_t numel;
    int64_t sample;  // elements of one sample
    Element output_type;
    Element input_type;
    Element noise_type;
};

// Returns what the launch reported; no elements launch nothing.
cudaError_t solver_step(const SolverStep& args, cudaStream_t stream);

}  // namespace fastdiff::cuda
