// What the gradient's kernels share. With t = x + add - mean, z = t * gain + offset and dz = grad * slope(z),
// every channel needs the sums of dz, of dz * t and of t; from those come its group's two shares, and then dx
// = gain * dz - first - t * second.
#pragma once

#include "group_norm_silu.cuh"

namespace fastdiff::cuda {

struct alignas(16) Sums {
    float grad, product, value, gap;  // of dz, of dz * t, of t

    __device__ __forceinline__ void add(const Sums& other) {
        grad += other.grad;
        product += other.product;
        value += other.value;
    }
    __device__ __forceinline__ void over_warp() {
        grad = warp_sum(grad);
        product = warp_sum(product);
        value = warp_sum(value);
    }
};
static_assert(sizeof(Sums) == kSumsBytes, "as the plan has it");

// A group's: first of the partial sums of gain * dz and of gain * dz * xhat, then as dx takes them.
struct Shares {
    float first, second;
};
static_assert(sizeof(Shares) == kSharesBytes, "as the plan has it");

__device__ __forceinline__ Sums load_fresh_sums(const Sums* from) {
    return {load_fresh(&from->grad), load_fresh(&from->product), load_fresh(&from->value), 0.0f};
}

__device__ __forceinline__ void gather(Sums& sums, float x, float grad, const Channel& c, int activation) {
    const float t = x + c.add, dz = grad * slope(fmaf(t, c.gain, c.offset), activation);
    sums.grad += dz;
    sums.product = fmaf(dz, t, sums.product);
    sums.value += t;
}

__device__ __forceinline__ float gradient(
    float x, float grad, const Channel& c, const Shares& shares, int activation) {
    const float t = x + c.add, dz = grad * slope(fmaf(t, c.gain, c.offset), activation);
    return fmaf(c.gain, dz, -fmaf(t, shares.second, shares.first));
}

template <typename T>
__device__ __forceinline__ Channel
channel_of(const GroupNormSiluBackward& args, int64_t sample, int64_t channel) {
    const int64_t per_group = args.norm.channels / args.norm.groups;
    const int64_t group = sample * args.norm.groups + channel / per_group;
    return normalised(channel_of<T>(args.norm, sample, channel), args.mean[group], args.rstd[group]);
}

// A channel's part of its group's shares. c.gain holds rstd, which comes out again in shares_of.
__device__ __forceinline__ Shares part_of(const Sums& sums, const Channel& c) {
    return {c.gain * sums.grad, c.gain * sums.product};
}

// All blocks' parts of a group, `stride` apart, added up by one warp, as dx takes them.
__device__ inline Shares shares_of(
    const Shares* parts, int64_t slabs, int64_t stride, double count, float rstd) {
    double first = 0.0, second = 0.0;
#pragma unroll 1
    for (int64_t s = threadIdx.x % 32; s < slabs; s += 32) {
        first += load_fresh(&parts[s * stride].first);
        second += load_fresh(&parts[s * stride].second);
    }
    first = warp_sum(first) / count;
    second = warp_sum(second) / count * rstd * rstd;
    return {static_cast<float>(first), static_cast<float>(second)};
}

// Writes the three sums of a channel: of dz, of dz * xhat and of dx.
__device__ __forceinline__ void leave_sums(
    const GroupNormSiluBackward& args, int64_t sample, int64_t channel, const Sums& sums, const Channel& c,
    const Shares& shares) {
    const Norm& norm = args.norm;
    const int64_t at = sample * norm.channels + channel, size = norm.batch * norm.channels;
    const float rstd = args.rstd[sample * norm.groups + channel / (norm.channels / norm.groups)];
    args.sums[at] = sums.grad;
    args.sums[size + at] = sums.product * rstd;
    const double rest =
        static_cast<double>(norm.pixels) * shares.first + static_cast<double>(sums.value) * shares.second;
    args.sums[2 * size + at] = static_cast<float>(static_cast<double>(c.gain) * sums.grad - rest);
}

template <typename T, int N, int kCount>
__device__ __forceinline__ void forget(Pack<T, N> (&x)[kCount], Pack<T, N> (&grad)[kCount]) {
    forget(x);
    forget(grad);
}

}  // namespace fastdiff::cuda
