// fastdiff/counter.py in C++. Its definition stands in a file of its own, compiled without fused
// multiply-adds.
#pragma once

#include <cstdint>

namespace fastdiff {
namespace FASTDIFF_LEVEL {

// Values [first, first + count) of stream `stream` of seed `seed`.
void counter_normal(uint64_t seed, uint64_t stream, int64_t first, int64_t count, float* out);

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
