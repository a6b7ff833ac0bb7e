// The one place that launches: a test's emulation puts its own macros here to run the kernels on a CPU.
#pragma once

#include <cuda_runtime_api.h>

#ifndef FASTDIFF_LAUNCH
    #include <cooperative_groups.h>

    #include <cstdint>

namespace fastdiff::cuda {

// shared: bytes of dynamic shared memory. cooperative: the grid's blocks may wait for each other; where they
// do not fit on the GPU at once, the launch reports cudaErrorCooperativeLaunchTooLarge.
template <typename... Parameters>
cudaError_t launch(
    void (*kernel)(Parameters...), int64_t grid, int block, int64_t shared, bool cooperative,
    cudaStream_t stream, Parameters... parameters) {
    if (shared > 48 * 1024) {  // more than any GPU gives unasked
        const cudaError_t error = cudaFuncSetAttribute(
            reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(shared));
        if (error != cudaSuccess) return error;
    }
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(static_cast<unsigned>(block));
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cooperative ? 1 : 0;
    void* pointers[] = {&parameters...};
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
}

}  // namespace fastdiff::cuda

    #define FASTDIFF_LAUNCH(kernel, grid, block, stream, ...) \
        (kernel<<<static_cast<unsigned>(grid), block, 0, stream>>>(__VA_ARGS__), cudaGetLastError())
    #define FASTDIFF_LAUNCH_SHARED(kernel, grid, block, shared, stream, ...) \
        ::fastdiff::cuda::launch(kernel, grid, block, shared, false, stream, __VA_ARGS__)
    #define FASTDIFF_LAUNCH_COOPERATIVE(kernel, grid, block, shared, stream, ...) \
        ::fastdiff::cuda::launch(kernel, grid, block, shared, true, stream, __VA_ARGS__)
   // Dynamic shared memory, at a 16-byte boundary.
    #define FASTDIFF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
    #define FASTDIFF_GRID_SYNC() cooperative_groups::this_grid().sync()
#endif
