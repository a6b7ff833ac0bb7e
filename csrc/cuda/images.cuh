// V elements of an image at a time: float32, or of a type known at the launch only, since a template over the
// types of every tensor would be dozens of kernels.
#pragma once

#include <cstring>

#include "element.h"
#include "vector.cuh"

namespace fastdiff::cuda {

template <int V>
struct Floats {
    float lane[V];
};

// V elements of a tensor, as they lie in memory: a type of half the width fills half of it.
template <int V>
struct Raw {
    uint32_t word[V];
};

template <int V>
__device__ __forceinline__ Floats<V> load(const float* data, int64_t at) {
    Floats<V> result;
    const auto pack = *reinterpret_cast<const Pack<float, V>*>(data + at);
#pragma unroll
    for (int i = 0; i < V; ++i) result.lane[i] = pack.lane[i];
    return result;
}

template <int V>
__device__ __forceinline__ void store(float* data, int64_t at, const Floats<V>& values) {
    Pack<float, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.lane[i] = values.lane[i];
    *reinterpret_cast<Pack<float, V>*>(data + at) = pack;
}

// Not converted at once: the next load need not wait for this one.
template <int V>
__device__ __forceinline__ Raw<V> load_raw(const void* data, Element type, int64_t at) {
    Raw<V> raw = {};
    if (type == Element::kFloat32) {
        const auto pack = static_cast<const Pack<uint32_t, V>*>(data)[at / V];
#pragma unroll
        for (int i = 0; i < V; ++i) raw.word[i] = pack.lane[i];
    } else {
        const auto pack = static_cast<const Pack<uint16_t, V>*>(data)[at / V];
        memcpy(&raw, &pack, sizeof(pack));
    }
    return raw;
}

template <class T, int V>
__device__ __forceinline__ Floats<V> widen(const Raw<V>& raw) {
    Pack<T, V> pack;
    memcpy(&pack, &raw, sizeof(pack));
    Floats<V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result.lane[i] = to_float(pack.lane[i]);
    return result;
}

template <int V>
__device__ __forceinline__ Floats<V> widen(const Raw<V>& raw, Element type) {
    if (type == Element::kFloat32) return widen<float>(raw);
    return type == Element::kFloat16 ? widen<__half>(raw) : widen<__nv_bfloat16>(raw);
}

template <int V>
__device__ __forceinline__ void add(Floats<V>& total, float weight, const Floats<V>& term) {
#pragma unroll
    for (int i = 0; i < V; ++i) total.lane[i] = fmaf(weight, term.lane[i], total.lane[i]);
}

inline bool on_boundary(const void* data, int bytes) { return reinterpret_cast<uint64_t>(data) % bytes == 0; }

}  // namespace fastdiff::cuda
