// Included before a .cu file so that a C++ compiler makes a program of it that runs on a CPU. Every CUDA
// thread is a fiber; one runs at a time, until it waits for others: at __syncthreads, a warp's exchange, the
// grid's barrier or in a loop that spins. Arithmetic, indices and what passes between threads are the
// kernel's own; a race shows as results that change with emulated_order (emulation.cpp). What it cannot show:
// speed, and memory ordering.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "intrinsics.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

struct Shape {
    int64_t grid;
    int block;
    int64_t shared;    // bytes of dynamic shared memory, filled with NaN when a block starts
    bool cooperative;  // all blocks alive at once, or one after another
};

// Runs `kernel` once for every thread. Errors are those a GPU would report, and cudaErrorLaunchTimeout where
// threads wait for ever, cudaErrorIllegalAddress where a block wrote beyond its dynamic shared memory.
cudaError_t run(const Shape& shape, const std::function<void()>& kernel);

extern int64_t most_cooperative;  // blocks of a cooperative launch; 0: there are no such launches

void sync_block();
void sync_grid();
void pass();  // lets the others run: for loops that wait for memory to change
void* dynamic_shared();
// Leaves `value` for the warp's other threads in `mask`, waits for theirs, and returns all 32.
const uint64_t* exchange(unsigned mask, uint64_t value);

inline int lane() { return static_cast<int>(threadIdx.x % warpSize); }

template <typename T>
T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    std::memcpy(&value, exchange(mask, bits) + source, sizeof(T));
    return value;
}

// Threads run one at a time, so a plain update is atomic.
template <typename T, typename Update>
T exchange_in_memory(T* at, Update update) {
    const T before = *at;
    *at = update(before);
    return before;
}

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, const Shape& shape, const Args&... args) {
    return run(shape, [&] { kernel(args...); });
}

}  // namespace emulation

// --- what a kernel calls ---

inline void __syncthreads() { emulation::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::exchange(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { emulation::pass(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
    const int base = emulation::lane() / width * width;
    return emulation::shuffle(mask, value, base + source % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = warpSize) {
    const int from = emulation::lane() ^ flip;
    return emulation::shuffle(
        mask, value, from / width <= emulation::lane() / width ? from : emulation::lane());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    const int from = emulation::lane() + static_cast<int>(delta);
    return emulation::shuffle(
        mask, value, from / width == emulation::lane() / width ? from : emulation::lane());
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    const int lane = emulation::lane(), from = lane - static_cast<int>(delta);
    return emulation::shuffle(mask, value, from >= lane / width * width ? from : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t* all = emulation::exchange(mask, predicate != 0);
    unsigned votes = 0;
    for (int i = 0; i < warpSize; ++i)
        if ((mask >> i & 1) && all[i]) votes |= 1u << i;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline unsigned __match_any_sync(unsigned mask, uint64_t value) {
    const uint64_t* all = emulation::exchange(mask, value);
    unsigned same = 0;
    for (int i = 0; i < warpSize; ++i)
        if ((mask >> i & 1) && all[i] == value) same |= 1u << i;
    return same;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    const uint64_t* all = emulation::exchange(mask, value);
    unsigned total = 0;
    for (int i = 0; i < warpSize; ++i)
        if (mask >> i & 1) total += static_cast<unsigned>(all[i]);
    return total;
}
inline unsigned __activemask() { return 0xffffffffu; }

template <typename T>
T atomicAdd(T* at, T value) {
    return emulation::exchange_in_memory(at, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T* at, T value) {
    return emulation::exchange_in_memory(at, [&](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T* at, T value) {
    return emulation::exchange_in_memory(at, [&](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* at, T value) {
    return emulation::exchange_in_memory(at, [&](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* at, T value) {
    return emulation::exchange_in_memory(at, [&](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicExch(T* at, T value) {
    return emulation::exchange_in_memory(at, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, T expected, T value) {
    return emulation::exchange_in_memory(at, [&](T old) { return old == expected ? value : old; });
}

#define __launch_bounds__(...)
// One copy for all blocks, which is right where blocks run one after another: a cooperative kernel must keep
// what its blocks share in dynamic shared memory.
#undef __shared__
#define __shared__ static

#define FASTDIFF_LAUNCH_SHARED(kernel, grid, block, shared, stream, ...) \
    emulation::launch(kernel, {grid, block, shared, false}, __VA_ARGS__)
#define FASTDIFF_LAUNCH_COOPERATIVE(kernel, grid, block, shared, stream, ...) \
    emulation::launch(kernel, {grid, block, shared, true}, __VA_ARGS__)
#define FASTDIFF_LAUNCH(kernel, grid, block, stream, ...) \
    FASTDIFF_LAUNCH_SHARED(kernel, grid, block, 0, stream, __VA_ARGS__)
#define FASTDIFF_DYNAMIC_SHARED(name) \
    unsigned char* const name = static_cast<unsigned char*>(emulation::dynamic_shared())
#define FASTDIFF_GRID_SYNC() emulation::sync_grid()
