// Included before a .cu file so that a C++ compiler makes a program of it that runs one thread after another.
// Good for kernels whose threads do not talk to each other: arithmetic and indices are the kernel's own.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>

inline thread_local uint3 blockIdx;
inline thread_local uint3 threadIdx;

#define __launch_bounds__(...)

template <typename Kernel, typename... Args>
cudaError_t run_every_thread(Kernel kernel, int64_t grid, int block, const Args&... args) {
    if (grid < 1 || grid > INT32_MAX) return cudaErrorInvalidConfiguration;  // as a GPU would
    for (int64_t b = 0; b < grid; ++b) {
        for (int t = 0; t < block; ++t) {
            blockIdx.x = static_cast<unsigned>(b);
            threadIdx.x = static_cast<unsigned>(t);
            kernel(args...);
        }
    }
    return cudaSuccess;
}

#define FASTDIFF_LAUNCH(kernel, grid, block, stream, ...) run_every_thread(kernel, grid, block, __VA_ARGS__)
