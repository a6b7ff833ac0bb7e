// Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011): four random words for a counter and a key.
#pragma once

#include <cstdint>

namespace fastdiff::cuda {

struct Words {
    uint32_t x, y, z, w;
};

// counter: (low, high) of 64 bits each; key: 64 bits. curand's state has the offset in `low`, the subsequence
// in `high`.
__device__ __forceinline__ Words philox(uint64_t low, uint64_t high, uint64_t key) {
    Words c = {
        static_cast<uint32_t>(low),
        static_cast<uint32_t>(low >> 32),
        static_cast<uint32_t>(high),
        static_cast<uint32_t>(high >> 32),
    };
    uint32_t first = static_cast<uint32_t>(key), second = static_cast<uint32_t>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t left = static_cast<uint64_t>(c.x) * 0xD2511F53u;
        const uint64_t right = static_cast<uint64_t>(c.z) * 0xCD9E8D57u;
        c = {
            static_cast<uint32_t>(right >> 32) ^ c.y ^ first,
            static_cast<uint32_t>(right),
            static_cast<uint32_t>(left >> 32) ^ c.w ^ second,
            static_cast<uint32_t>(left),
        };
        first += 0x9E3779B9u;
        second += 0xBB67AE85u;
    }
    return c;
}

}  // namespace fastdiff::cuda
