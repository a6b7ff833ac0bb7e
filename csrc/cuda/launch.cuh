// The one place that launches: a test puts its own FASTDIFF_LAUNCH here to run the kernels on a CPU.
#pragma once

#include <cuda_runtime_api.h>

#ifndef FASTDIFF_LAUNCH
    #define FASTDIFF_LAUNCH(kernel, grid, block, stream, ...) \
        (kernel<<<static_cast<unsigned>(grid), block, 0, stream>>>(__VA_ARGS__), cudaGetLastError())
#endif
