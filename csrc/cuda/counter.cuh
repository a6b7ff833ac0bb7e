// fastdiff/counter.py on a GPU: noise whose bits depend on seed, stream and place alone. Every operation is
// an intrinsic that rounds once to nearest, so that no compiler flag and no contraction changes a bit.
#pragma once

#include "philox.cuh"

namespace fastdiff::cuda {

// Four values of a stream: elements 4*block to 4*block + 3 of a sample in contiguous order.
struct Normals {
    float value[4];
};

namespace counter {

template <int N>
__device__ __forceinline__ float polynomial(const float (&coefficients)[N], float x) {
    float total = coefficients[0];
#pragma unroll
    for (int i = 1; i < N; ++i) total = __fadd_rn(__fmul_rn(total, x), coefficients[i]);
    return total;
}

// Natural logarithm of u in (0, 1].
__device__ __forceinline__ float log(float u) {
    constexpr float kLog[] = {
        0.07149753719568253f,  -0.115712009370327f,   0.11661510914564133f,
        -0.12411050498485565f, 0.14249937236309052f,  -0.1666848063468933f,
        0.20000708103179932f,  -0.24999989569187164f, 0.3333333134651184f,
    };
    const int32_t bits = __float_as_int(u);
    const int32_t exponent = (bits - 0x3F3504F3) >> 23;
    const float f = __fsub_rn(__int_as_float(bits - (exponent << 23)), 1.0f);
    const float square = __fmul_rn(f, f), e = __int2float_rn(exponent);
    const float cubic = __fmul_rn(__fmul_rn(f, square), polynomial(kLog, f));
    const float tail = __fsub_rn(cubic, __fmul_rn(0.5f, square));
    const float low = __fadd_rn(__fmul_rn(e, -0.00021219444170128554f), tail);
    return __fadd_rn(__fadd_rn(low, f), __fmul_rn(e, 0.693359375f));
}

__device__ __forceinline__ void box_muller(uint32_t x, uint32_t y, float& first, float& second) {
    constexpr float kSin[] = {
        0.00015820653061382473f, -0.004681266378611326f, 0.07969257980585098f,
        -0.6459640860557556f,    1.5707963705062866f,
    };
    constexpr float kCos[] = {
        0.00090362987248227f, -0.02086007036268711f, 0.25366920232772827f, -1.2337005138397217f, 1.0f,
    };
    constexpr float kUnit = 1.0f / (1 << 24), kQuarter = 1.0f / (1 << 22);
    const float u = __fmul_rn(__uint2float_rn((x >> 8) + 1), kUnit);
    const float radius = __fsqrt_rn(__fmul_rn(-2.0f, log(u)));
    const uint32_t turn = y >> 8, quarter = turn >> 22;
    const int32_t part = static_cast<int32_t>(turn & 0x3FFFFFu) - 0x200000;
    const float v = __fmul_rn(__int2float_rn(part), kQuarter), square = __fmul_rn(v, v);
    const float sine = __fmul_rn(v, polynomial(kSin, square)), cosine = polynomial(kCos, square);
    const float a = quarter & 1 ? -sine : cosine, b = quarter & 1 ? cosine : sine;
    first = __fmul_rn(radius, quarter & 2 ? -a : a);
    second = __fmul_rn(radius, quarter & 2 ? -b : b);
}

}  // namespace counter

__device__ __forceinline__ Normals counter_normals(int64_t seed, int64_t stream, int64_t block) {
    const Words words =
        philox(static_cast<uint64_t>(block), static_cast<uint64_t>(stream), static_cast<uint64_t>(seed));
    Normals normals;
    counter::box_muller(words.x, words.y, normals.value[0], normals.value[1]);
    counter::box_muller(words.z, words.w, normals.value[2], normals.value[3]);
    return normals;
}

}  // namespace fastdiff::cuda
