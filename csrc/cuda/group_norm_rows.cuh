// Where the elements of a group lie when its channels are rows of pixels, cut into pieces: 32 packs of N
// elements, one a lane. The pieces of a group are counted through all its rows.
#pragma once

#include "group_norm_silu.cuh"

namespace fastdiff::cuda {

// An element of an array; or nothing, where a lane has none.
struct Place {
    int64_t at;
    bool inside;
};

// N elements a pack: 16 bytes of planar images, or (N = 1) single elements of any layout.
template <int N>
struct Rows {
    int sample, channel, count;  // the team's sample, its first channel and how many it has: one a row
    int64_t first;               // where the first row starts
    int64_t between, stride;     // from a row to the next, and from an element to the next
    int64_t length;              // elements of a row
    int phase;                   // how many elements past a 16-byte boundary the arrays start
    bool edges;                  // whether rows start or end off such boundaries

    __device__ __forceinline__ Rows(const Norm& norm, const Plan& plan, int64_t team)
        : sample(static_cast<int>(team / norm.groups)),
          count(static_cast<int>(norm.channels / norm.groups)),
          length(norm.pixels),
          phase(plan.phase),
          edges(N > 1 && plan.edges) {
        const bool last = N == 1 && norm.channels_last;
        channel = static_cast<int>(team % norm.groups) * count;
        between = last ? 1 : norm.pixels;
        stride = last ? norm.channels : 1;
        first = sample * norm.channels * norm.pixels + channel * between;
    }

    __device__ __forceinline__ int64_t row_start(int row) const {
        return first + row * (N == 1 ? between : length);
    }

    // Elements of a row before its first 16-byte boundary.
    __device__ __forceinline__ int64_t head(int64_t start) const {
        if (!edges) return 0;
        const int64_t up = (N - (start + phase) % N) % N;
        return up < length ? up : length;
    }

    // Where a piece starts, and how many of its 32 packs there are.
    __device__ __forceinline__ int64_t start_of(int row, int piece) const {
        const int64_t start = row_start(row);
        return start + (head(start) + static_cast<int64_t>(piece) * (32 * N)) * (N == 1 ? stride : 1);
    }
    __device__ __forceinline__ int packs_of(int row, int piece) const {
        const int64_t rest = (length - head(row_start(row))) / N - static_cast<int64_t>(piece) * 32;
        return static_cast<int>(rest < 0 ? 0 : rest < 32 ? rest : 32);
    }

    // The elements of a row before its first pack and after its last, one a lane.
    __device__ __forceinline__ Place edge(int row) const {
        const int lane = threadIdx.x % 32;
        const int64_t start = row_start(row), before = head(start);
        const int64_t index = lane < N ? lane : before + (length - before) / N * N + lane - N;
        return {start + index, lane < N ? lane < before : index < length && lane < 2 * N};
    }
};

// The pieces [begin, end) of a block.
struct Slab {
    int begin, end;

    __device__ __forceinline__ Slab(const Plan& plan, int64_t rows) {
        const int64_t all = rows * plan.pieces, at = blockIdx.x % plan.slabs * plan.slab;
        begin = static_cast<int>(at < all ? at : all);
        end = static_cast<int>(at + plan.slab < all ? at + plan.slab : all);
    }
};

template <typename V>
__device__ __forceinline__ V of_slot(V value, int slot) {
    return __shfl_sync(kWholeWarp, value, slot);
}

// At most 32 pieces of a warp, the slots: lane s knows where slot s is, and tells the others.
template <int N>
struct Share {
    int at, count, pieces;  // the first piece, how many, and how many a row has
    int own_row, own_packs;
    int64_t own_start;
    int64_t stride;

    __device__ __forceinline__
    Share(const Rows<N>& rows, const Slab& slab, const Plan& plan, int at, int most)
        : at(at),
          count(
              at >= slab.end         ? 0
              : most < slab.end - at ? most
                                     : slab.end - at),
          pieces(static_cast<int>(plan.pieces)) {
        const int own = at + static_cast<int>(threadIdx.x % 32);
        own_row = own / pieces;
        const bool any = own < at + count;
        own_packs = any ? rows.packs_of(own_row, own % pieces) : 0;
        own_start = any ? rows.start_of(own_row, own % pieces) : 0;
        stride = rows.stride;
    }

    // Whether this lane has a pack in the slot, and where it is.
    __device__ __forceinline__ bool inside(int slot) const {
        return static_cast<int>(threadIdx.x % 32) < of_slot(own_packs, slot);
    }
    __device__ __forceinline__ int64_t place(int slot) const {
        const int lane = threadIdx.x % 32;
        return of_slot(own_start, slot) + (N == 1 ? lane * stride : lane * N);
    }

    // visit(slot) for each slot before kMost.
    template <int kMost, typename Visit>
    __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll
        for (int slot = 0; slot < kMost; ++slot)
            if (slot < count) visit(slot);
    }

    // visit(slot, row) for the slots that begin a row, if rows have edges.
    template <typename Visit>
    __device__ __forceinline__ void each_start(const Rows<N>& rows, Visit visit) const {
        if (!rows.edges || count == 0) return;
        for (int row = (at + pieces - 1) / pieces; row * pieces < at + count; ++row)
            visit(row * pieces - at, row);
    }

    // The channel values of this lane's own slot.
    template <typename T>
    __device__ __forceinline__ Channel channel(const Norm& norm, const Rows<N>& rows) const {
        if (static_cast<int>(threadIdx.x % 32) >= count) return {};
        return channel_of<T>(norm, rows.sample, rows.channel + own_row);
    }
};

__device__ __forceinline__ Channel of_slot(const Channel& c, int slot) {
    return {of_slot(c.add, slot), of_slot(c.gain, slot), of_slot(c.offset, slot)};
}

}  // namespace fastdiff::cuda
