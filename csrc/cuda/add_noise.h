// out = alpha * x0 + sigma * noise on the current device. Knows nothing of torch: pointers, sizes, a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"

namespace fastdiff::cuda {

// One weight per sample (stride 1) or one for all (stride 0), on the device; or, where data is null, a number
// that was known at the call.
struct Weight {
    const void* data;  // float64 or float32
    int64_t stride;
    bool is_double;
    float value;
};

struct AddNoise {
    void* out;
    const void* x0;
    const void* noise;
    Weight alpha;
    Weight sigma;
    int64_t batch;
    int64_t inner;  // elements of one sample; sample b is [b * inner, (b + 1) * inner) in out, x0 and noise
    Element element;
};

// Any alignment of the three arrays that suits their element; out may be x0 or noise itself.
// Returns what the launch reported; a batch or a sample of no elements launches nothing.
cudaError_t add_noise(const AddNoise& args, cudaStream_t stream);

}  // namespace fastdiff::cuda
