// What the forward kernels share: reading x with the residual on the way, and moments as they grow.
#pragma once

#include "group_norm_silu.cuh"

namespace fastdiff::cuda {

// At the start of a block's dynamic shared memory.
struct alignas(16) Scratch {
    float sums[3 * kNormWarps];
    Statistics statistics;
};
static_assert(sizeof(Scratch) <= kScratchBytes && sizeof(Moments) == kMomentsBytes, "as the plan has it");

// x + residual, rounded and written.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> with_residual(
    const GroupNormSilu& args, const Pack<T, N>& x, int64_t at) {
    const auto sum = add_rounded(x, load<Reuse::kNever, T, N>(static_cast<const T*>(args.residual) + at));
    store<Reuse::kUsual>(static_cast<T*>(args.summed) + at, sum);
    return sum;
}

// x, with the residual where there is one; called once for each element.
template <typename T, int N, Reuse kReuse>
__device__ __forceinline__ Pack<T, N> first_read(const GroupNormSilu& args, int64_t at) {
    const auto x = load<kReuse, T, N>(static_cast<const T*>(args.x) + at);
    return args.residual == nullptr ? x : with_residual<T, N>(args, x, at);
}

// What first_read made of x, for a later read by the same thread or launch.
template <typename T>
__device__ __forceinline__ const T* input_of(const GroupNormSilu& args) {
    return static_cast<const T*>(args.residual ? args.summed : args.x);
}

__device__ __forceinline__ void leave_statistics(
    const GroupNormSilu& args, int64_t group, const Statistics& found) {
    args.mean[group] = static_cast<float>(found.mean);
    args.rstd[group] = found.rstd;
}

__device__ __forceinline__ void gather(float (&around)[2], float distance) {
    around[0] += distance;
    around[1] = fmaf(distance, distance, around[1]);
}

template <typename T, int N>
__device__ __forceinline__ float sum_of(const Pack<T, N>& x) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += to_float(x.lane[i]);
    return sum;
}

// The distances of x + shift from 0.
template <typename T, int N>
__device__ __forceinline__ void gather(float (&around)[2], const Pack<T, N>& x, float shift) {
#pragma unroll
    for (int i = 0; i < N; ++i) gather(around, to_float(x.lane[i]) + shift);
}

// Sums over values of their distances from a point, and of the squares.
struct Running {
    float point, count, first, second;

    __device__ __forceinline__ void move_to(float to) {
        const float off = point - to;
        second = fmaf(off, fmaf(count, off, 2.0f * first), second);
        first = fmaf(count, off, first);
        point = to;
    }

    // The point moves to about the mean of both, so that distances stay small whatever the values are.
    __device__ __forceinline__ void merge(Running other) {
        const float all = count + other.count;
        const float share = all == 0.0f ? 0.0f : __fdividef(other.count, all);
        const float to = fmaf(other.point - point, share, point);
        move_to(to);
        other.move_to(to);
        count = all;
        first += other.first;
        second += other.second;
    }

    // All threads' values; every thread gets the result. scratch: as block_sum's.
    __device__ __forceinline__ Moments over_block(float* scratch) {
        float sums[2] = {count == 0.0f ? 0.0f : fmaf(count, point, first), count};
        block_sum<2, kNormWarps>(sums, scratch);
        if (count != 0.0f) move_to(sums[0] / sums[1]);
        float around[2] = {first, second};
        const float middle = sums[0] / sums[1];
        block_sum<2, kNormWarps>(around, scratch);
        return moments_around(middle, sums[1], around[0], around[1]);
    }
};

// The channels of a thread, each with its running sums.
template <int N>
struct RunningLanes {
    float point[N] = {}, first[N] = {}, second[N] = {};
    float count = 0.0f;

    template <typename T>
    __device__ __forceinline__ void merge(Pack<T, N> (&x)[kSlots], int more) {
        float mean[N] = {};
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
            if (s < more) {
#pragma unroll
                for (int i = 0; i < N; ++i) mean[i] += to_float(x[s].lane[i]);
            }
        forget(x);
        const float all = count + static_cast<float>(more), part = 1.0f / static_cast<float>(more);
        const float share = static_cast<float>(more) / all;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            Running own = {point[i], count, first[i], second[i]};
            const float to = fmaf(fmaf(mean[i], part, -point[i]), share, point[i]);
            own.move_to(to);
            float around[2] = {0.0f, 0.0f};
            mean[i] *= part;
#pragma unroll
            for (int s = 0; s < kSlots; ++s)
                if (s < more) gather(around, to_float(x[s].lane[i]) - mean[i]);
            Running other = {mean[i], static_cast<float>(more), around[0], around[1]};
            other.move_to(to);
            point[i] = to;
            first[i] = own.first + other.first;
            second[i] = own.second + other.second;
        }
        count = all;
    }
};

}  // namespace fastdiff::cuda
