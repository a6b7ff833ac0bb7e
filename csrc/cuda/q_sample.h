// Noise made where it is used, on the current device: x = alpha*x0 + sigma*noise, the noise and the velocity
// alpha*noise - sigma*x0 in one pass. Knows nothing of torch: pointers, sizes, a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "add_noise.h"
#include "element.h"
#include "torch_randn.h"

namespace fastdiff::cuda {

// Dense memory of batch * inner elements, sample b from b * inner on. The noise is rounded to `element`
// before it is used. A null pointer is not written; without x0 only the noise is made.
struct QSample {
    const void* x0;
    const void* given;  // the noise, where it is not drawn
    void* x;
    void* noise;
    void* velocity;
    Weight alpha;
    Weight sigma;
    int64_t batch;
    int64_t inner;
    Element element;
};

// Each returns what its launches reported; no elements launch nothing.
cudaError_t q_sample_given(const QSample& args, cudaStream_t stream);

// torch.randn's bits for a contiguous tensor. state: advanced as torch.randn advances it.
cudaError_t q_sample_drawn(
    const QSample& args, const DeviceSize& device, PhiloxState& state, cudaStream_t stream);

// Those of fastdiff/counter.py. seeds: one a sample, on the device.
cudaError_t q_sample_counted(const QSample& args, const int64_t* seeds, int64_t which, cudaStream_t stream);

}  // namespace fastdiff::cuda
