#pragma once

#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

template <class T>
void add_noise_of(const AddNoise& args, int64_t begin, int64_t end) {
    const T* x0 = static_cast<const T*>(args.x0);
    const T* noise = static_cast<const T*>(args.noise);
    T* out = static_cast<T*>(args.out);
    while (begin < end) {
        const int64_t sample = begin / args.sample_size;
        const int64_t next = (sample + 1) * args.sample_size;
        const int64_t stop = next < end ? next : end;
        const float alpha = args.alpha[sample * args.alpha_step];
        const float sigma = args.sigma[sample * args.sigma_step];
        for_tiles(begin, stop, [&](auto whole, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
            Tile data = load_tile<decltype(whole)::value>(x0 + i, count);
            const Tile drawn = load_tile<decltype(whole)::value>(noise + i, count);
            for (int j = 0; j < kUnroll; ++j) data.v[j] = alpha * data.v[j] + sigma * drawn.v[j];
            store_tile<decltype(whole)::value>(out + i, data, count);
        });
        begin = stop;
    }
}

void add_noise(const AddNoise& args, int64_t begin, int64_t end) {
    switch (args.dtype) {
        case Dtype::f32: return add_noise_of<float>(args, begin, end);
        case Dtype::f16: return add_noise_of<Half>(args, begin, end);
        case Dtype::bf16: return add_noise_of<Bfloat>(args, begin, end);
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
