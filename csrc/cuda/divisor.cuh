// Division by a number known at the launch: a multiplication instead of the 70 instructions of a 64-bit
// division.
#pragma once

#include <cstdint>

namespace fastdiff::cuda {

struct Divisor {
    uint64_t divisor;
    uint64_t factor;  // floor((2^64 - 1) / divisor)
};

inline Divisor divisor_of(int64_t value) {
    const uint64_t divisor = value < 1 ? 1 : static_cast<uint64_t>(value);
    return {divisor, ~uint64_t{0} / divisor};
}

// floor(n / d) for 0 <= n < 2^63. n * factor / 2^64 falls short of n / d by less than 1.
__device__ __forceinline__ int64_t quotient(int64_t n, const Divisor& d) {
    const uint64_t estimate = __umul64hi(static_cast<uint64_t>(n), d.factor);
    const uint64_t rest = static_cast<uint64_t>(n) - estimate * d.divisor;
    return static_cast<int64_t>(estimate + (rest >= d.divisor));
}

}  // namespace fastdiff::cuda
