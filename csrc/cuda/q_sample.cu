#include "counter.cuh"
#include "divisor.cuh"
#include "launch.cuh"
#include "load_weight.cuh"
#include "q_sample.h"
#include "torch_randn.cuh"
#include "vector.cuh"

namespace fastdiff::cuda {
namespace {

// Drawing takes up to 48 registers, so five of these blocks share a multiprocessor: enough to hide the loads
// of x0, which wait behind a few hundred instructions of Philox and Box-Muller a vector.
constexpr int kThreads = 256;

// vectors: 16 bytes of every tensor lie on a boundary, and none of them in two samples.
struct Images {
    QSample args;
    Divisor inner;
    bool vectors;
};

__device__ __forceinline__ int64_t sample_of(const Images& images, int64_t at) {
    return images.args.alpha.stride | images.args.sigma.stride ? quotient(at, images.inner) : 0;
}

template <typename T>
__device__ __forceinline__ void write_element(const QSample& q, int64_t at, int64_t sample, T noise) {
    if (q.noise) static_cast<T*>(q.noise)[at] = noise;
    if (!q.x0) return;
    const float alpha = load_weight(q.alpha, sample), sigma = load_weight(q.sigma, sample);
    const T x0 = static_cast<const T*>(q.x0)[at];
    static_cast<T*>(q.x)[at] = mix(alpha, x0, sigma, noise);
    if (q.velocity) static_cast<T*>(q.velocity)[at] = mix(alpha, noise, -sigma, x0);
}

template <typename T>
__device__ __forceinline__ void write_vector(
    const QSample& q, int64_t at, int64_t sample, const Vector<T>& noise) {
    using V = Vector<T>;
    if (q.noise) store_whole(static_cast<T*>(q.noise) + at, noise);
    if (!q.x0) return;
    const float alpha = load_weight(q.alpha, sample), sigma = load_weight(q.sigma, sample);
    const V x0 = *reinterpret_cast<const V*>(static_cast<const T*>(q.x0) + at);
    V x, velocity;
#pragma unroll
    for (int i = 0; i < V::kLanes; ++i) {
        x.lane[i] = mix(alpha, x0.lane[i], sigma, noise.lane[i]);
        velocity.lane[i] = mix(alpha, noise.lane[i], -sigma, x0.lane[i]);
    }
    store_whole(static_cast<T*>(q.x) + at, x);
    if (q.velocity) store_whole(static_cast<T*>(q.velocity) + at, velocity);
}

// The results for `count` elements from `at` on, a vector or fewer.
template <typename T>
__device__ __forceinline__ void write(
    const Images& images, int64_t at, int64_t count, const Vector<T>& noise) {
    if (images.vectors && count >= Vector<T>::kLanes)
        return write_vector<T>(images.args, at, sample_of(images, at), noise);
#pragma unroll
    for (int i = 0; i < Vector<T>::kLanes; ++i)
        if (i < count) write_element<T>(images.args, at + i, sample_of(images, at + i), noise.lane[i]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) q_sample_given_kernel(const Images images) {
    using V = Vector<T>;
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V::kLanes;
    const int64_t left = images.args.batch * images.args.inner - at;
    if (left <= 0) return;
    const T* given = static_cast<const T*>(images.args.given);
    V noise = {};
    if (images.vectors && left >= V::kLanes) {
        noise = *reinterpret_cast<const V*>(given + at);
    } else {
#pragma unroll
        for (int i = 0; i < V::kLanes; ++i)
            if (i < left) noise.lane[i] = given[at + i];
    }
    write<T>(images, at, left, noise);
}

// One thread makes what `kLanes` neighbouring threads of torch's kernel make in one turn: a vector in each of
// the four places, `columns` apart, that a Philox call fills.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    q_sample_drawn_kernel(const Images images, const DrawnPiece piece, const uint64_t seed) {
    using V = Vector<T>;
    const unsigned width = static_cast<unsigned>(piece.columns) / V::kLanes;
    const unsigned unit = blockIdx.x * kThreads + threadIdx.x;  // torch's own pieces are below 2^31 elements
    const unsigned turn = unit / width;
    const int64_t column = static_cast<int64_t>(unit % width) * V::kLanes;
    const int64_t start = 4 * piece.columns * turn + column;
    if (start >= piece.count) return;
    const uint64_t counter = static_cast<uint64_t>(piece.offset) / 4 + turn;
    const bool lower = start + 2 * piece.columns < piece.count;
    V noise[4] = {};
#pragma unroll
    for (int i = 0; i < V::kLanes; ++i) {
        const Words words = philox(counter, static_cast<uint64_t>(column + i), seed);
        float a, b;
        curand_box_muller(words.x, words.y, a, b);
        noise[0].lane[i] = from_float<T>(a);
        noise[1].lane[i] = from_float<T>(b);
        if (lower) {
            curand_box_muller(words.z, words.w, a, b);
            noise[2].lane[i] = from_float<T>(a);
            noise[3].lane[i] = from_float<T>(b);
        }
    }
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        const int64_t at = start + row * piece.columns;
        if (at < piece.count) write<T>(images, piece.first + at, piece.count - at, noise[row]);
    }
}

// One thread, one vector of a sample: `units` of them cover it.
template <typename T>
__global__ void __launch_bounds__(kThreads) q_sample_counted_kernel(
    const Images images, const Divisor units, const int64_t* seeds, const int64_t which) {
    using V = Vector<T>;
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t sample = quotient(unit, units);
    if (sample >= images.args.batch) return;
    const int64_t within = (unit - sample * static_cast<int64_t>(units.divisor)) * V::kLanes;
    const int64_t seed = seeds[sample];
    V noise;
#pragma unroll
    for (int i = 0; i < V::kLanes; i += 4) {
        const Normals normals = counter_normals(seed, which, (within + i) / 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) noise.lane[i + j] = from_float<T>(normals.value[j]);
    }
    write<T>(images, sample * images.args.inner + within, images.args.inner - within, noise);
}

template <typename T>
Images images_of(const QSample& q) {
    const void* tensors[] = {q.x0, q.given, q.x, q.noise, q.velocity};
    const bool shared = q.batch == 1 || (q.alpha.stride == 0 && q.sigma.stride == 0);
    bool vectors = shared || q.inner % Vector<T>::kLanes == 0;
    for (const void* data : tensors)
        vectors = vectors && reinterpret_cast<uint64_t>(data) % kVectorBytes == 0;
    return {q, divisor_of(q.inner), vectors};
}

template <typename T>
cudaError_t given(const QSample& q, cudaStream_t stream) {
    const int64_t blocks = ceil_div(q.batch * q.inner, kThreads * Vector<T>::kLanes);
    return FASTDIFF_LAUNCH(q_sample_given_kernel<T>, blocks, kThreads, stream, images_of<T>(q));
}

template <typename T>
cudaError_t drawn(const QSample& q, const DrawnPiece& piece, uint64_t seed, cudaStream_t stream) {
    Images images = images_of<T>(q);
    images.vectors = images.vectors && piece.first % Vector<T>::kLanes == 0;
    const int64_t turns = ceil_div(piece.count, 4 * piece.columns);
    const int64_t blocks = ceil_div(turns * piece.columns / Vector<T>::kLanes, kThreads);
    return FASTDIFF_LAUNCH(q_sample_drawn_kernel<T>, blocks, kThreads, stream, images, piece, seed);
}

template <typename T>
cudaError_t counted(const QSample& q, const int64_t* seeds, int64_t which, cudaStream_t stream) {
    Images images = images_of<T>(q);
    images.vectors = images.vectors && (q.batch == 1 || q.inner % Vector<T>::kLanes == 0);
    const int64_t units = ceil_div(q.inner, Vector<T>::kLanes);
    const int64_t blocks = ceil_div(q.batch * units, kThreads);
    return FASTDIFF_LAUNCH(
        q_sample_counted_kernel<T>, blocks, kThreads, stream, images, divisor_of(units), seeds, which);
}

}  // namespace

cudaError_t q_sample_given(const QSample& args, cudaStream_t stream) {
    if (args.batch * args.inner == 0) return cudaSuccess;
    if (args.element == Element::kFloat32) return given<float>(args, stream);
    return args.element == Element::kFloat16 ? given<__half>(args, stream)
                                             : given<__nv_bfloat16>(args, stream);
}

cudaError_t q_sample_drawn(
    const QSample& args, const DeviceSize& device, PhiloxState& state, cudaStream_t stream) {
    const int64_t count = args.batch * args.inner;
    for (const DrawnPiece& piece : drawn_pieces(count, bytes_of(args.element), device, state)) {
        const cudaError_t error =
            args.element == Element::kFloat32   ? drawn<float>(args, piece, state.seed, stream)
            : args.element == Element::kFloat16 ? drawn<__half>(args, piece, state.seed, stream)
                                                : drawn<__nv_bfloat16>(args, piece, state.seed, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t q_sample_counted(const QSample& args, const int64_t* seeds, int64_t which, cudaStream_t stream) {
    if (args.batch * args.inner == 0) return cudaSuccess;
    if (args.element == Element::kFloat32) return counted<float>(args, seeds, which, stream);
    return args.element == Element::kFloat16 ? counted<__half>(args, seeds, which, stream)
                                             : counted<__nv_bfloat16>(args, seeds, which, stream);
}

}  // namespace fastdiff::cuda
