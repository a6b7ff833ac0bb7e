// Sizes that host and device agree on: what a block keeps in shared memory, and what blocks leave each other.
#pragma once

#include "group_norm_silu.h"
#include "row_split.h"

namespace fastdiff::cuda {

constexpr int64_t kMomentsBytes = 16, kStatisticsBytes = 16, kScratchBytes = 224;
constexpr int64_t kSumsBytes = 16;   // of a piece, row or channel in the gradient: three sums and a gap
constexpr int64_t kSharesBytes = 8;  // of a group in the gradient: two sums

FASTDIFF_HOST_DEVICE inline int64_t rounded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Floats of one sum over the channels of a range, in parts; and of all tables for so many sums (columns).
FASTDIFF_HOST_DEVICE inline int64_t part_size(int64_t width) {
    return width > kNormThreads ? width : kNormThreads;
}
FASTDIFF_HOST_DEVICE inline int64_t columns_shared(int lanes, int64_t width, int64_t groups, int sums) {
    return rounded(sums * (kNormThreads * lanes + part_size(width) + groups) * 4) + groups * kStatisticsBytes;
}

// Rows that a run of pieces can touch.
inline int64_t rows_touched(const Norm& norm, const Plan& plan) {
    const int64_t touched = (plan.slab + plan.pieces - 2) / plan.pieces + 1,
                  rows = norm.channels / norm.groups;
    return touched < rows ? touched : rows;
}

// A workspace: a counter for each phase, then what each block leaves of its groups, then (gradient) of its
// channels.
FASTDIFF_HOST_DEVICE inline int64_t counter_bytes(const Plan& plan) { return rounded(plan.phases * 4); }
FASTDIFF_HOST_DEVICE inline int64_t group_bytes(const Plan& plan, int64_t bytes) {
    return rounded(plan.teams * plan.slabs * plan.groups * bytes);
}
inline int64_t workspace_bytes(const Plan& plan, bool backward) {
    if (!backward) return counter_bytes(plan) + group_bytes(plan, kMomentsBytes);
    return counter_bytes(plan) + group_bytes(plan, kSharesBytes) +
           plan.teams * plan.slabs * plan.channels * kSumsBytes;
}

}  // namespace fastdiff::cuda
