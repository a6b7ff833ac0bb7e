#include "dynamic_bound.h"
#include "images.cuh"
#include "launch.cuh"
#include "solver_row.cuh"

namespace fastdiff::cuda {
namespace {

// A block of 1024 threads keeps 16 values each, 16384 in all, in registers while it counts them three times:
// of 64x64x3 pixels one block sees all. More are read and computed anew each time.
constexpr int kThreads = 1024, kValues = 16, kLanes = 4;
constexpr int64_t kResident = kThreads * kValues;
constexpr int kBins = 2048;
constexpr uint32_t kInfinity = 0x7F800000u, kNone = 0xFFFFFFFFu;  // above every value, NaN included

// 31 bits without the sign, in the order of the values: 11, then 10, then 10 of them.
struct Digit {
    int shift;
    uint32_t mask;
};
__device__ constexpr Digit kDigits[3] = {{20, 2047}, {10, 1023}, {0, 1023}};

struct Shared {
    Row row;
    GuidedWeights w;
    uint32_t bins[kBins];
    uint32_t warps[kThreads / 32];
    uint32_t digit, before;  // the bin that holds the rank, and how many lie below it
    uint32_t nan, above;     // whether there is NaN; the least value above the bins
};

// The sample's share of a block: elements from first to last - 1.
struct Part {
    int64_t sample, first, last;
    uint32_t* scratch;
};

template <int V>
__device__ __forceinline__ void magnitudes(
    const DynamicBound& d, const GuidedWeights& w, int64_t at, float gain, uint32_t (&bits)[V]) {
    Floats<V> data = {};
    const Floats<V> x = w.p != 0 ? load<V>(d.x, at) : Floats<V>{};
    const Raw<V> output = w.g != 0 ? load_raw<V>(d.output, d.type, at) : Raw<V>{};
    const Raw<V> uncond = w.g_uncond != 0 ? load_raw<V>(d.uncond, d.type, at) : Raw<V>{};
    Floats<V> both = {};
    add(both, w.g, widen(output, d.type));
    add(both, w.g_uncond, widen(uncond, d.type));
    add(data, w.p, x);
    if (w.q != 0) add(data, w.q * gain, both);
#pragma unroll
    for (int i = 0; i < V; ++i) bits[i] = __float_as_uint(data.lane[i]) & 0x7FFFFFFFu;
}

// What a thread sees of its part: kept where it fits, else computed at each visit.
template <int V, bool kKept>
struct Values {
    const DynamicBound& d;
    const GuidedWeights w;
    const Part part;
    const float gain;
    uint32_t kept[kKept ? kValues : 1];

    __device__ __forceinline__ Values(const DynamicBound& d, const GuidedWeights& weights, const Part& part)
        : d(d), w(weights), part(part), gain(d.gain ? d.gain[part.sample] : 1.0f) {
        if constexpr (kKept) {
#pragma unroll
            for (int i = 0; i < kValues; i += V) {
                const int64_t at = part.first + (i / V * kThreads + threadIdx.x) * V;
                uint32_t bits[V];
#pragma unroll
                for (int j = 0; j < V; ++j) bits[j] = kNone;
                if (at < part.last) magnitudes<V>(d, w, at, gain, bits);
#pragma unroll
                for (int j = 0; j < V; ++j) kept[i + j] = bits[j];
            }
        }
    }

    template <class F>
    __device__ __forceinline__ void visit(const F& f) const {
        if constexpr (kKept) {
#pragma unroll
            for (int i = 0; i < kValues; ++i)
                if (kept[i] != kNone) f(kept[i]);
        } else {
            for (int64_t at = part.first + threadIdx.x * V; at < part.last; at += kThreads * V) {
                uint32_t bits[V];
                magnitudes<V>(d, w, at, gain, bits);
#pragma unroll
                for (int j = 0; j < V; ++j) f(bits[j]);
            }
        }
    }
};

// The bin that holds the value of this rank, and how many values lie below it; kNone if there are not so
// many. Each thread brings its two bins.
__device__ inline void find(Shared& s, uint32_t first, uint32_t second, uint32_t rank) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = first + second;
    for (unsigned step = 1; step < 32; step *= 2) {
        const uint32_t lower = __shfl_up_sync(0xFFFFFFFFu, sum, step);
        if (lane >= step) sum += lower;
    }
    if (lane == 31) s.warps[warp] = sum;
    if (threadIdx.x == 0) s.digit = kNone;
    __syncthreads();
    for (unsigned i = 0; i < warp; ++i) sum += s.warps[i];
    const uint32_t before = sum - first - second;
    if (rank >= before && rank < sum) {
        const bool upper = rank >= before + first;
        s.digit = 2 * threadIdx.x + upper;
        s.before = before + (upper ? first : 0);
    }
    __syncthreads();
}

__device__ inline void clear(Shared& s) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.bins[i] = 0;
    __syncthreads();
}

// Adds the block's counts to those of the sample's other blocks, and brings back the total of a thread's two
// bins.
__device__ inline void gather(const DynamicBound& d, const Shared& s, uint32_t* total, uint32_t (&mine)[2]) {
    const int at = 2 * static_cast<int>(threadIdx.x);
    mine[0] = s.bins[at];
    mine[1] = s.bins[at + 1];
    if (d.blocks == 1) return;
    if (mine[0]) atomicAdd(total + at, mine[0]);
    if (mine[1]) atomicAdd(total + at + 1, mine[1]);
    FASTDIFF_GRID_SYNC();
    mine[0] = static_cast<volatile uint32_t*>(total)[at];
    mine[1] = static_cast<volatile uint32_t*>(total)[at + 1];
}

// NaN and the least value above the bins, over the sample's blocks; before the last counts are gathered.
__device__ inline void share_extremes(const DynamicBound& d, const Shared& s, uint32_t* total) {
    if (d.blocks == 1 || threadIdx.x != 0) return;
    if (s.nan) atomicOr(total, 1u);
    atomicMin(total + 1, s.above);
}

__device__ inline float between(float low, float high, const DynamicBound& d) {
    const float value = low == high || d.fraction == 0 ? low : fmaf(d.fraction, high - low, low);
    return value < 1.0f ? 1.0f : value > d.most ? d.most : value;
}

// The two values and the quantile, once the last digits are counted. `high` is shared by the thread that has
// it.
__device__ inline void finish(
    const DynamicBound& d, const Part& part, Shared& s, uint32_t prefix, uint32_t rank,
    const uint32_t (&mine)[2]) {
    find(s, mine[0], mine[1], rank);
    const uint32_t low = prefix << 10 | s.digit;
    __syncthreads();
    find(s, mine[0], mine[1], rank + 1);
    if (threadIdx.x != 0 || blockIdx.x % d.blocks != 0) return;
    volatile uint32_t* extremes = d.blocks == 1 ? &s.nan : part.scratch + 3 * kBins;
    const bool nan = extremes[0] != 0;
    const uint32_t high = s.digit != kNone ? prefix << 10 | s.digit : extremes[1];
    const float value = between(__uint_as_float(low), __uint_as_float(high == kNone ? low : high), d);
    d.bound[part.sample] = nan ? not_a_number() : value;
}

template <int V, bool kKept>
__device__ __forceinline__ void select(const DynamicBound& d, const Part& part, Shared& s) {
    if (d.blocks > 1) {
        const int64_t block = blockIdx.x % d.blocks;
        for (int64_t i = block * kThreads + threadIdx.x; i < dynamic_bound_scratch; i += d.blocks * kThreads)
            part.scratch[i] = i == 3 * kBins + 1 ? kNone : 0;
    }
    if (threadIdx.x == 0) s.nan = 0, s.above = kNone;
    const Values<V, kKept> values(d, s.w, part);
    if (d.blocks > 1) FASTDIFF_GRID_SYNC();
    uint32_t prefix = 0, rank = d.rank, mine[2];
    for (int digit = 0; digit < 3; ++digit) {
        const int shift = kDigits[digit].shift;
        const uint32_t mask = kDigits[digit].mask;
        clear(s);
        uint32_t above = kNone;
        values.visit([&](uint32_t bits) {
            const uint32_t upper = digit == 0 ? 0 : bits >> (shift + 10);
            if (upper == prefix) atomicAdd(&s.bins[bits >> shift & mask], 1u);
            if (digit == 0 && bits > kInfinity) atomicOr(&s.nan, 1u);
            if (digit == 2 && upper > prefix && bits < above) above = bits;
        });
        if (above != kNone) atomicMin(&s.above, above);
        __syncthreads();
        if (digit == 2) share_extremes(d, s, part.scratch + 3 * kBins);
        gather(d, s, part.scratch + digit * kBins, mine);
        if (digit == 2) return finish(d, part, s, prefix, rank, mine);
        find(s, mine[0], mine[1], rank);
        prefix = (digit == 0 ? 0 : prefix << 10) | s.digit;
        rank -= s.before;
        __syncthreads();
    }
}

template <int V, bool kKept>
__global__ void __launch_bounds__(kThreads, 1)
    dynamic_bound_kernel(const DynamicBound d, const int64_t share) {
    FASTDIFF_DYNAMIC_SHARED(memory);
    Shared& s = *reinterpret_cast<Shared*>(memory);
    read_guided(d.table, d.rows, d.index, true, d.uncond, s.row, s.w);
    Part part;
    part.sample = blockIdx.x / d.blocks;
    const int64_t start = part.sample * d.sample, from = blockIdx.x % d.blocks * share;
    part.first = start + (from < d.sample ? from : d.sample);
    part.last = start + (from + share < d.sample ? from + share : d.sample);
    part.scratch = d.scratch + part.sample * dynamic_bound_scratch;
    select<V, kKept>(d, part, s);
}

template <int V>
cudaError_t launch(const DynamicBound& d, cudaStream_t stream) {
    const int64_t share = ceil_div(ceil_div(d.sample, d.blocks), kLanes) * kLanes, grid = d.batch * d.blocks;
    if (d.blocks > 1 && share <= kResident)
        return FASTDIFF_LAUNCH_COOPERATIVE(
            (dynamic_bound_kernel<V, true>), grid, kThreads, sizeof(Shared), stream, d, share);
    if (d.blocks > 1)
        return FASTDIFF_LAUNCH_COOPERATIVE(
            (dynamic_bound_kernel<V, false>), grid, kThreads, sizeof(Shared), stream, d, share);
    if (share <= kResident)
        return FASTDIFF_LAUNCH_SHARED(
            (dynamic_bound_kernel<V, true>), grid, kThreads, sizeof(Shared), stream, d, share);
    return FASTDIFF_LAUNCH_SHARED(
        (dynamic_bound_kernel<V, false>), grid, kThreads, sizeof(Shared), stream, d, share);
}

}  // namespace

int dynamic_bound_blocks(int64_t batch, int64_t sample, int multiprocessors) {
    if (sample <= kResident) return 1;
    const int64_t room = multiprocessors / batch, wanted = ceil_div(sample, kResident / 2);
    return static_cast<int>(room < 1 ? 1 : wanted < room ? wanted : room);
}

cudaError_t dynamic_bound(const DynamicBound& args, cudaStream_t stream) {
    if (args.batch == 0) return cudaSuccess;
    const int bytes = kLanes * bytes_of(args.type);
    const bool vectors = args.sample % kLanes == 0 && on_boundary(args.x, kLanes * 4) &&
                         on_boundary(args.output, bytes) && on_boundary(args.uncond, bytes);
    return vectors ? launch<kLanes>(args, stream) : launch<1>(args, stream);
}

}  // namespace fastdiff::cuda
