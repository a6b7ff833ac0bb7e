// Where the elements of a range of channels lie in channels-last images, and sums over its groups. A thread
// keeps one pack of N channels and walks down the pixels.
#pragma once

#include "group_norm_silu.cuh"

namespace fastdiff::cuda {

template <int N>
struct Columns {
    int sample, channel;  // the team's sample, and its first channel
    int width, per_group, groups, first_group;
    int columns, together;  // packs of a pixel, and pixels that the block reads at once
    int row, column;        // this thread's
    int64_t step, at;       // from a pixel to the next; this thread's pack of the sample's pixel 0
    int64_t begin, end;     // this thread's pixels of the slab, `together` apart
    int64_t pixels;         // of the whole slab

    __device__ __forceinline__ Columns(const Norm& norm, const Plan& plan, int64_t team)
        : width(static_cast<int>(plan.width)),
          per_group(static_cast<int>(norm.channels / norm.groups)),
          groups(width / per_group),
          columns(width / N),
          together(kNormThreads / columns),
          step(norm.channels) {
        const int64_t ranges = norm.channels / width, slab = blockIdx.x % plan.slabs * plan.slab;
        sample = static_cast<int>(team / ranges);
        channel = static_cast<int>(team % ranges) * width;
        first_group = static_cast<int>(channel / per_group);
        row = threadIdx.x / columns;
        column = threadIdx.x % columns;
        at = sample * norm.pixels * step + channel + column * N;
        const int64_t last = slab + plan.slab < norm.pixels ? slab + plan.slab : norm.pixels;
        pixels = slab < last ? last - slab : 0;
        begin = slab + row;
        end = row < together ? last : begin;
    }

    __device__ __forceinline__ int group_of(int lane) const { return (column * N + lane) / per_group; }
    __device__ __forceinline__ bool active() const { return row < together; }
    __device__ __forceinline__ int64_t place(int64_t pixel) const { return at + pixel * step; }
};

// The block's dynamic shared memory when its threads keep columns, for sums of K values a channel.
struct Tables {
    float* table;   // [K, threads * N]
    float* parts;   // [K, max(threads, width)]
    float* totals;  // [K, groups]
    Statistics* statistics;
    unsigned char* spare;

    __device__ __forceinline__ Tables(unsigned char* memory, int lanes, int width, int groups, int sums) {
        table = reinterpret_cast<float*>(memory);
        parts = table + sums * kNormThreads * lanes;
        totals = parts + sums * part_size(width);
        spare = memory + columns_shared(lanes, width, groups, sums);
        statistics = reinterpret_cast<Statistics*>(spare) - groups;
    }
};

// Each thread's K values of N channels, summed over the block's threads: parts[k * size + p * width + c] for
// p of the `split` parts of channel c. Ends without a barrier.
template <int K, int N>
__device__ __forceinline__ int sum_by_channel(
    const float (&value)[K][N], const Columns<N>& columns, const Tables& tables) {
    const int size = static_cast<int>(part_size(columns.width));
    if (columns.active()) {
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int i = 0; i < N; ++i) tables.table[(k * kNormThreads + threadIdx.x) * N + i] = value[k][i];
    }
    __syncthreads();
    const int split = columns.width < kNormThreads ? kNormThreads / columns.width : 1;
    for (int j = threadIdx.x; j < split * columns.width; j += kNormThreads) {
        const int channel = j % columns.width;
        for (int k = 0; k < K; ++k) {
            const float* column = tables.table + k * kNormThreads * N + channel;
            float sum = 0.0f;
#pragma unroll 4
            for (int row = j / columns.width; row < columns.together; row += split)
                sum += column[row * columns.width];
            tables.parts[k * size + j] = sum;
        }
    }
    return split;
}

// The same over whole groups: totals[k * groups + g]. Ends with a barrier.
template <int K, int N>
__device__ __forceinline__ void sum_by_group(
    const float (&value)[K][N], const Columns<N>& columns, const Tables& tables) {
    const int split = sum_by_channel(value, columns, tables);
    const int size = static_cast<int>(part_size(columns.width)), lane = threadIdx.x % 32;
    __syncthreads();
    for (int g = threadIdx.x / 32; g < columns.groups; g += kNormWarps) {
        for (int k = 0; k < K; ++k) {
            float sum = 0.0f;
#pragma unroll 2
            for (int e = lane; e < split * columns.per_group; e += 32) {
                const int part = e / columns.per_group, channel = e % columns.per_group;
                sum += tables.parts[k * size + part * columns.width + g * columns.per_group + channel];
            }
            sum = warp_sum(sum);
            if (lane == 0) tables.totals[k * columns.groups + g] = sum;
        }
    }
    __syncthreads();
}

// The channel values of a thread's own channels.
template <typename T, int N>
__device__ __forceinline__ void channels_of(
    const Norm& norm, const Columns<N>& columns, Channel (&channels)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        channels[i] = {};
        if (columns.active())
            channels[i] = channel_of<T>(norm, columns.sample, columns.channel + columns.column * N + i);
    }
}

}  // namespace fastdiff::cuda
