// What the kernels of group_norm_silu and its gradient share: accesses, moments, channel values, activations.
#pragma once

#include "group_norm_layout.h"
#include "group_norm_silu.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace fastdiff::cuda {

// Which lines L2 gives up: a phase's input is wanted again soon, its output and the last read of its input
// not.
enum class Reuse { kUsual, kSoon, kNever };

template <Reuse kReuse, typename T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
#ifdef __CUDA_ARCH__
    if constexpr (kReuse != Reuse::kUsual && sizeof(T) * N == 16) {
        uint64_t policy;
        if constexpr (kReuse == Reuse::kSoon)
            asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
        else
            asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        union {
            uint4 bits;
            Pack<T, N> pack;
        } u;
        // volatile: what it reads may have been written by this kernel
        asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(u.bits.x), "=r"(u.bits.y), "=r"(u.bits.z), "=r"(u.bits.w)
                     : "l"(__cvta_generic_to_global(from)), "l"(policy)
                     : "memory");
        return u.pack;
    }
#endif
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <Reuse kReuse, typename T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
#ifdef __CUDA_ARCH__
    if constexpr (kReuse == Reuse::kNever && sizeof(T) * N == 16) {
        __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&pack));
        return;
    }
#endif
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Keeps the compiler from carrying what it made of the packs (their values in float32) over to their next
// use: that would take twice the registers, and the conversions are nearly free.
template <typename T, int N, int kCount>
__device__ __forceinline__ void forget(Pack<T, N> (&packs)[kCount]) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) * N == 16) {
    #pragma unroll
        for (int i = 0; i < kCount; ++i) {
            uint4& bits = *reinterpret_cast<uint4*>(&packs[i]);
            asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
        }
    }
#endif
}

// Through L2: another block may have written it since this SM last read the line.
template <typename V>
__device__ __forceinline__ V load_fresh(const V* from) {
#ifdef __CUDA_ARCH__
    return __ldcg(from);
#else
    return *from;
#endif
}

template <typename T>
__device__ __forceinline__ float value_at(const Values& values, int64_t at, float missing) {
    if (values.data == nullptr) return missing;
    return values.wide ? static_cast<const float*>(values.data)[at]
                       : to_float(static_cast<const T*>(values.data)[at]);
}

// z = xhat * gain + offset for one channel of one sample, xhat being the normalised x + add.
struct Channel {
    float add, gain, offset;
};

template <typename T>
__device__ __forceinline__ Channel channel_of(const Norm& norm, int64_t sample, int64_t channel) {
    const int64_t at = sample * norm.channels + channel;
    const float factor = 1.0f + value_at<T>(norm.scale, at, 0.0f);
    return {
        value_at<T>(norm.add, at, 0.0f), value_at<T>(norm.weight, channel, 1.0f) * factor,
        fmaf(value_at<T>(norm.bias, channel, 0.0f), factor, value_at<T>(norm.shift, at, 0.0f))};
}

// z = (x + delta) * gain + offset: delta is add - mean, and offset makes up for delta's rounding, so that a
// mean of 1000 costs no digits.
__device__ __forceinline__ Channel normalised(const Channel& channel, double mean, float rstd) {
    const double exact = static_cast<double>(channel.add) - mean;
    const float delta = static_cast<float>(exact), gain = channel.gain * rstd;
    return {delta, gain, fmaf(gain, static_cast<float>(exact - delta), channel.offset)};
}

__device__ __forceinline__ float activate(float z, int activation) {
    if (activation == 1) return __fdividef(z, 1.0f + __expf(-z));
    if (activation == 2) return 0.5f * z * (1.0f + erff(z * 0.70710678118654752f));
    return z;
}

// The activation's derivative at z.
__device__ __forceinline__ float slope(float z, int activation) {
    if (activation == 1) {
        const float sigmoid = __fdividef(1.0f, 1.0f + __expf(-z));
        return sigmoid * fmaf(z, 1.0f - sigmoid, 1.0f);
    }
    if (activation == 2) {
        const float density = 0.39894228040143268f * __expf(-0.5f * z * z);
        return fmaf(z, density, 0.5f * (1.0f + erff(z * 0.70710678118654752f)));
    }
    return 1.0f;
}

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> activated(const float (&z)[N], int activation) {
    Pack<T, N> y;
#pragma unroll
    for (int i = 0; i < N; ++i) y.lane[i] = from_float<T>(z[i]);
    if (activation == 1) {
#pragma unroll
        for (int i = 0; i < N; ++i) y.lane[i] = from_float<T>(activate(z[i], 1));
    } else if (activation == 2) {
#pragma unroll
        for (int i = 0; i < N; ++i) y.lane[i] = from_float<T>(activate(z[i], 2));
    }
    return y;
}

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> normalise(const Pack<T, N>& x, const Channel& c, int activation) {
    float z[N];
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = fmaf(to_float(x.lane[i]) + c.add, c.gain, c.offset);
    return activated<T>(z, activation);
}

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> add_rounded(const Pack<T, N>& a, const Pack<T, N>& b) {
    Pack<T, N> sum;
#pragma unroll
    for (int i = 0; i < N; ++i) sum.lane[i] = from_float<T>(to_float(a.lane[i]) + to_float(b.lane[i]));
    return sum;
}

// What a block knows of a group: float holds any deviation well, the mean beside it needs more.
struct alignas(16) Moments {
    double mean;
    float squares;  // sum of squared deviations from the mean
    float count;
};

// From sums of distances to a point near the mean, and of their squares.
__device__ __forceinline__ Moments moments_around(float point, float count, float first, float second) {
    if (count == 0.0f) return {0.0, 0.0f, 0.0f};
    const double off = static_cast<double>(first) / count;
    return {point + off, fmaf(static_cast<float>(-off), first, second), count};
}

struct Statistics {
    double mean;
    float rstd;
};

__device__ __forceinline__ Statistics finish(double mean, double squares, double count, double eps) {
    const double variance = squares < 0.0 ? 0.0 : squares / count;  // a rounding below zero; NaN stays
    return {mean, static_cast<float>(rsqrt(variance + eps))};
}

// All slabs' moments of one group, `stride` apart, by one warp: Chan's formula for many parts at once. The
// first slab is never empty.
__device__ inline Statistics combine(
    const Moments* parts, int64_t slabs, int64_t stride, double count, double eps) {
    const double point = load_fresh(&parts->mean);
    double first = 0.0, second = 0.0;
    for (int64_t s = threadIdx.x % 32; s < slabs; s += 32) {
        const Moments* part = parts + s * stride;
        const double n = load_fresh(&part->count), off = load_fresh(&part->mean) - point;
        first += n * off;
        second += load_fresh(&part->squares) + n * off * off;
    }
    first = warp_sum(first);
    second = warp_sum(second);
    return finish(point + first / count, second - first * (first / count), count, eps);
}

// Between the launches or the phases of a grid: the barrier of its first phase is the cooperative launch's
// own, whose counter the driver zeroes for each launch; those of later phases count arrivals in the
// workspace, which block 0 zeroes before the first. So the workspace may hold anything, a captured graph can
// be replayed, and launches on two streams have a workspace each.
__device__ inline void arrive(unsigned* counter) {
    __syncthreads();  // the block's partial results are written
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1u);
    }
}

__device__ inline void wait_for(const unsigned* counter, unsigned blocks) {
    if (threadIdx.x == 0) {
        while (*static_cast<const volatile unsigned*>(counter) < blocks) __nanosleep(64);
        __threadfence();
    }
    __syncthreads();
}

enum class Step { kFirst, kSecond, kBoth };  // of kLaunches; both: a cooperative launch

// The phases of a stream. Ahead: the statistics of the next phase are under way while a phase waits for its
// barrier; else each phase is gathered, waited for and applied before the next is touched.
template <typename Gather, typename Apply>
__device__ __forceinline__ void in_phases(
    const Plan& plan, unsigned* counters, Step step, Gather gather, Apply apply) {
    const bool together = step == Step::kBoth;
    const int phases = static_cast<int>(plan.phases), teams = static_cast<int>(plan.teams);
    const int each = static_cast<int>(plan.per_phase), lead = plan.ahead ? 1 : 0;
    int next = static_cast<int>(blockIdx.x / static_cast<unsigned>(plan.slabs));  // the team to gather
    for (int phase = 0; phase < phases + lead; ++phase, next += each) {
        if (step != Step::kSecond && phase < phases) {
            if (next < teams) gather(next);
            if (together && phase > 0) arrive(counters + phase);
        }
        if (together && phase == 0) {
            if (blockIdx.x == 0)
                for (int p = threadIdx.x; p < phases; p += blockDim.x) counters[p] = 0;
            FASTDIFF_GRID_SYNC();
        }
        const int ready = phase - lead, team = next - lead * each;
        if (step != Step::kFirst && ready >= 0) {
            if (together && ready > 0) wait_for(counters + ready, gridDim.x);
            if (team < teams) apply(team);
        }
    }
}

}  // namespace fastdiff::cuda
