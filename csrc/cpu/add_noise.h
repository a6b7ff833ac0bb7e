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
        for_pieces(begin, stop, [&](auto piece, int64_t i, int64_t count) FASTDIFF_INLINE_LAMBDA {
            using P = decltype(piece);
            auto data = load_tile<P>(x0 + i, count);
            const auto drawn = load_tile<P>(noise + i, count);
            for (int j = 0; j < P::unroll; ++j) data.v[j] = alpha * data.v[j] + sigma * drawn.v[j];
            store_tile<P>(out + i, data, count);
        });
        begin = stop;
    }
}

void add_noise(const AddNoise& args, int64_t begin, int64_t end) {
    switch (args.dtype) {
        case Dtype::f32:
            return add_noise_of<float>(args, begin, end);
        case Dtype::f16:
            return add_noise_of<Half>(args, begin, end);
        case Dtype::bf16:
            return add_noise_of<Bfloat>(args, begin, end);
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
