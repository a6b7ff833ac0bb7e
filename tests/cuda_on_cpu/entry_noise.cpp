// C entries to the launcher that draws as torch.randn does, for GPUs and sizes that torch could not ask for.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "q_sample.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace fastdiff::cuda;

// Writes (first, count, columns, offset) of every piece; returns how many, and the offset afterwards in
// *offset.
EXPORT int emulated_drawn_pieces(
    int64_t count, int bytes, int multiprocessors, int threads, int64_t* offset, int64_t* pieces) {
    PhiloxState state = {0, *offset};
    const auto found = drawn_pieces(count, bytes, {multiprocessors, threads}, state);
    for (const DrawnPiece& piece : found) {
        for (const int64_t field : {piece.first, piece.count, piece.columns, piece.offset}) *pieces++ = field;
    }
    *offset = state.offset;
    return static_cast<int>(found.size());
}

// `most`: bytes beyond which a tensor is halved.
EXPORT int emulated_drawn(
    void* noise, int64_t count, int element, uint64_t seed, int64_t* offset, int multiprocessors, int threads,
    int64_t most) {
    QSample args = {};
    args.noise = noise;
    args.batch = 1;
    args.inner = count;
    args.element = static_cast<Element>(element);
    PhiloxState state = {seed, *offset};
    const cudaError_t error = q_sample_drawn(args, {multiprocessors, threads, most}, state, nullptr);
    *offset = state.offset;
    return error;
}
