// The bounds of dynamic thresholding in one launch, on the current device: of each sample a quantile of |p*x
// + q*F|, by radix select, exactly.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"
#include "solver_step.h"

namespace fastdiff::cuda {

// Dense images of batch * sample elements, laid out alike.
struct DynamicBound {
    const Row* table;
    const int64_t* index;
    int64_t rows;
    const float* x;
    const void* output;  // of `type`, uncond too
    const void* uncond;
    const float* gain;  // one a sample, or null
    float* bound;       // one a sample
    int64_t batch;
    int64_t sample;  // below 2^32
    Element type;
    uint32_t rank;   // the quantile lies between the values of this rank and the next,
    float fraction;  // so far from the first
    float most;
    int blocks;         // a sample; see dynamic_bound_blocks
    uint32_t* scratch;  // dynamic_bound_scratch words a sample; anything may be in it; unused with one block
};

constexpr int64_t dynamic_bound_scratch = 3 * 2048 + 2;

// How many blocks share a sample. They wait for each other, so all must fit on the GPU at once, one on a
// multiprocessor.
int dynamic_bound_blocks(int64_t batch, int64_t sample, int multiprocessors);

// Returns what the launch reported; sample must not be 0.
cudaError_t dynamic_bound(const DynamicBound& args, cudaStream_t stream);

}  // namespace fastdiff::cuda
