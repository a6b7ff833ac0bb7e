// How one contiguous row is cut into 16-byte pieces: index arithmetic only, no CUDA.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
    #define FASTDIFF_HOST_DEVICE __host__ __device__
#else
    #define FASTDIFF_HOST_DEVICE
#endif

namespace fastdiff::cuda {

constexpr int kVectorBytes = 16;

// head scalars up to the first 16-byte boundary, then `vectors` full vectors, then `tail` scalars.
// head + vectors * (16 / size) + tail is the row's length; head and tail are each below 16 / size.
struct RowSplit {
    int64_t head;
    int64_t vectors;
    int64_t tail;
};

// address: where the row starts, a multiple of `size` (the element's size in bytes: 1, 2, 4 or 8).
FASTDIFF_HOST_DEVICE inline RowSplit split_row(uint64_t address, int64_t length, int size) {
    const int64_t lanes = kVectorBytes / size;
    const int64_t past_boundary = static_cast<int64_t>(address % kVectorBytes) / size;
    int64_t head = past_boundary == 0 ? 0 : lanes - past_boundary;
    if (head > length) head = length;
    const int64_t rest = length - head;
    return {head, rest / lanes, rest % lanes};
}

// True if the three arrays reach a 16-byte boundary at the same element, so that one split serves all.
inline bool same_phase(const void* a, const void* b, const void* c) {
    const auto phase = [](const void* p) { return reinterpret_cast<uint64_t>(p) % kVectorBytes; };
    return phase(a) == phase(b) && phase(b) == phase(c);
}

FASTDIFF_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastdiff::cuda
