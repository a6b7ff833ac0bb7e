// How torch.randn draws on a CUDA device (torch's ATen/native/cuda/DistributionTemplates.h): which Philox
// call makes which element, and by how much the generator's offset advances. Host code: index arithmetic
// only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastdiff::cuda {

// A CUDA generator's state, as get_state() gives it.
struct PhiloxState {
    uint64_t seed;
    int64_t offset;
};

struct DeviceSize {
    int multiprocessors;
    int threads;               // that one of them can hold
    int64_t most = INT32_MAX;  // bytes that torch addresses in one launch, and elements: less only in tests
};

// Elements first to first + count - 1 of a tensor. Element i of them is made by subsequence i mod columns at
// counter offset/4 + i div (4*columns), and is number (i mod 4*columns) div columns of its four values.
struct DrawnPiece {
    int64_t first, count, columns;
    int64_t offset;
};

inline int64_t drawn_columns(int64_t count, const DeviceSize& device) {
    const int64_t most = static_cast<int64_t>(device.multiprocessors) * (device.threads / 256);
    return 256 * std::min((count + 255) / 256, most);
}

inline int64_t drawn_advance(int64_t count, const DeviceSize& device) {
    return ((count - 1) / (4 * drawn_columns(count, device)) + 1) * 4;
}

// Offsets in bytes are 32 bits wide there: a larger tensor is halved, the first half first, until each piece
// is small enough. It takes an advance for the whole beforehand, which nothing draws.
inline std::vector<DrawnPiece> drawn_pieces(
    int64_t count, int bytes, const DeviceSize& device, PhiloxState& state) {
    const auto fits = [&](int64_t n) { return (n - 1) * bytes < device.most && n <= device.most; };
    std::vector<DrawnPiece> pieces;
    if (count == 0) return pieces;
    if (!fits(count)) state.offset += drawn_advance(count, device);
    std::vector<std::pair<int64_t, int64_t>> left = {{0, count}};
    while (!left.empty()) {
        const auto [first, size] = left.back();
        left.pop_back();
        if (fits(size)) {
            pieces.push_back({first, size, drawn_columns(size, device), state.offset});
            state.offset += drawn_advance(size, device);
        } else {
            left.emplace_back(first + size / 2, size - size / 2);
            left.emplace_back(first, size / 2);
        }
    }
    return pieces;
}

}  // namespace fastdiff::cuda
