// What the kernels of group_norm_silu and of its backward take, and the table of them that every level fills.
//
// An item is what is normalised on its own: a group ([channels of it, size] in memory), or in channels-last a
// sample ([size, channels] in memory). Its parts, of a size that does not depend on the number of threads,
// are the units of parallel work where there are few items.
#pragma once

#include <cstdint>

namespace fastdiff {

enum class Dtype : int;

enum class Activation : int { none, silu, gelu };

// Small vectors, as float32 or null. weight, bias: [channels]; add, scale, shift: [batch, channels].
struct Small {
    const float* weight;
    const float* bias;
    const float* add;
    const float* scale;
    const float* shift;
};

struct Sizes {
    int64_t batch, channels, groups, pixels;
    int64_t padded;  // channels, rounded up to whole vectors of any level
    int64_t part;    // elements of a group (pixels of a channel in its backward), or pixels of a sample
    int64_t parts;   // of an item
    // Inlined always: no level may leave a symbol that another shares.
    __attribute__((always_inline)) int64_t items() const { return batch * groups; }
    __attribute__((always_inline)) int64_t per_group() const { return channels / groups; }
};

struct Statistics {
    double mean;
    float rstd;
};

// y = activation(((x + add - mean)*rstd*weight + bias)*(1 + scale) + shift), where x is the sum of itself and
// residual, rounded and written to summed, if there is a residual.
struct GroupNorm {
    const void* x;
    const void* residual;
    void* summed;
    void* y;
    Dtype dtype;
    Activation activation;
    Small small;
    Sizes sizes;
    double eps;
    float* mean;  // [batch, groups]
    float* rstd;
    // scratch
    float* guess;            // [batch, groups]: what the mean of x + add should be near
    Statistics* statistics;  // [batch, groups]
    double* sums;            // planar: [batch, groups, parts, 2], of x + add - guess and of its square;
                             // channels-last: [batch, 2, padded], the same by channel
    float* columns;          // channels-last: [batch, parts, 2, padded], the same of parts
    float* points;           // channels-last: [batch, padded], guess - add
    float* affine;           // channels-last: [batch, 5, padded], center, scale and shift (and room)
};

// dx, and the sums over pixels that the gradients of the small vectors are made of.
struct GroupNormGrad {
    const void* grad;
    const void* x;
    void* dx;
    Dtype dtype;
    Activation activation;
    Small small;
    Sizes sizes;
    const float* mean;
    const float* rstd;
    float* channel_sums;  // [3, batch, channels]: of dz, of dz*xhat, of dx
    // scratch
    float* sums;        // planar: [batch, groups, parts, 4], of dz, of dz*xhat and of xhat (and room)
    float* columns;     // channels-last: [batch, parts, 3, padded], the same
    float* affine;      // channels-last: [batch, 7, padded]
    float* kept;        // 16-bit: dz of an item, between its sums and its result
    int64_t kept_size;  // of an item; 0 where that is more than a cache holds
    int64_t kept_step;  // from item to item: 0 where one thread works on one after another
};

template <class Args>
struct Phases {
    void (*run)(const Args&, int64_t begin, int64_t end);                // items: all of the following
    void (*start)(const Args&, int64_t begin, int64_t end);              // items
    void (*sum)(const Args&, int64_t begin, int64_t end);                // units
    bool (*finish)(const Args&, int64_t begin, int64_t end, bool last);  // items; false: sum again
    void (*apply)(const Args&, int64_t begin, int64_t end);              // units
};

struct GroupNormKernels {
    Phases<GroupNorm> planar, channels_last;
    Phases<GroupNormGrad> planar_grad, channels_last_grad;
    void (*widen)(const void* from, Dtype dtype, int64_t count, float* to);
};

}  // namespace fastdiff
