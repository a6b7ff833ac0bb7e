// Guidance rescale's factor for each sample, on the current device: rescale*std(output)/std(g*output +
// g_uncond*uncond) + 1 - rescale, with population deviations; 1 where the guided one is 0 or NaN.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"
#include "solver_step.h"

namespace fastdiff::cuda {

// Mean and sum of squared deviations of the conditional output and of the guided one.
struct Moments {
    float count, mean, squares, guided_mean, guided_squares;
};

// Dense images of batch * sample elements, laid out alike.
struct RescaleGain {
    const Row* table;
    const int64_t* index;
    int64_t rows;
    const void* output;  // of `type`, uncond too
    const void* uncond;
    float* gain;  // one a sample
    int64_t batch;
    int64_t sample;
    Element type;
    float rescale;
    int blocks;        // a sample; see rescale_gain_blocks
    Moments* scratch;  // batch * blocks; unused with one block
};

// How many blocks share a sample. With one, a single launch does all; with more, a second adds up their
// moments: it costs what the memory set to zero would that a count of finished blocks needs, and nothing
// outlives the call.
int rescale_gain_blocks(int64_t batch, int64_t sample, int multiprocessors);

// Returns what the launches reported; sample must not be 0.
cudaError_t rescale_gain(const RescaleGain& args, cudaStream_t stream);

}  // namespace fastdiff::cuda
