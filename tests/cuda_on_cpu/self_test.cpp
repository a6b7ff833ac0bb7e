// Kernels that show the emulation at work: what they compute is known, or wrong on purpose.
#include "emulation.h"

namespace {

constexpr int kBlock = 96;

__global__ void sum_of_block(const float* values, float* totals) {
    __shared__ float warps[kBlock / warpSize];
    float value = values[blockIdx.x * blockDim.x + threadIdx.x];
    for (int flip = 16; flip > 0; flip /= 2) value += __shfl_xor_sync(0xffffffffu, value, flip);
    if (threadIdx.x % warpSize == 0) warps[threadIdx.x / warpSize] = value;
    __syncthreads();
    if (threadIdx.x == 0) totals[blockIdx.x] = warps[0] + warps[1] + warps[2];
}

__global__ void sum_of_grid(const float* values, float* parts, float* total) {
    FASTDIFF_DYNAMIC_SHARED(memory);
    float* own = reinterpret_cast<float*>(memory);
    own[threadIdx.x] = values[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = 0.0f;
        for (unsigned i = 0; i < blockDim.x; ++i) parts[blockIdx.x] += own[i];
    }
    FASTDIFF_GRID_SYNC();
    if (blockIdx.x == 0 && threadIdx.x == 0)
        for (unsigned b = 0; b < gridDim.x; ++b) *total += parts[b];
}

__global__ void race(int* last) { *last = static_cast<int>(threadIdx.x); }

__global__ void wait_for_ever() {
    if (threadIdx.x > 0) __shfl_sync(0xffffffffu, 1, 0);
}

__global__ void beyond_shared() {
    FASTDIFF_DYNAMIC_SHARED(memory);
    memory[blockDim.x + threadIdx.x % warpSize] = 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int self_test_sum_of_block(const float* values, float* totals, int64_t blocks) {
    return FASTDIFF_LAUNCH(sum_of_block, blocks, kBlock, nullptr, values, totals);
}
EXPORT int self_test_sum_of_grid(const float* values, float* parts, float* total, int64_t blocks) {
    return FASTDIFF_LAUNCH_COOPERATIVE(
        sum_of_grid, blocks, kBlock, kBlock * sizeof(float), nullptr, values, parts, total);
}
EXPORT int self_test_race(int* last) { return FASTDIFF_LAUNCH(race, 1, kBlock, nullptr, last); }
EXPORT int self_test_wait_for_ever() {
    return emulation::launch([] { wait_for_ever(); }, {1, kBlock, 0, false});
}
EXPORT int self_test_beyond_shared() {
    return emulation::launch([] { beyond_shared(); }, {1, kBlock, kBlock, false});
}
