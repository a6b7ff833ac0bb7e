// group_norm_silu and its gradient on the current device. Knows nothing of torch: pointers, sizes, a stream.
//
// The blocks that share statistics are a team. On planar images, and on any whose arrays do not reach 16-byte
// boundaries together, a team works on one group of one sample, whose channels are rows of pixels; on
// channels-last images on a range of whole groups, whose pixels are rows of channels. Each block of a team
// takes one slab: a run of the group's pieces (32 vectors of a row: what a warp loads at once), or a run of
// pixels.
//
//   kBlock     (A)  one block a team, which holds its slab in registers and shared memory
//   kChip      (B)  all teams at once, every block holding its slab; one barrier over the grid
//   kPhases    (C)  a few teams at a time; x is read twice, the second time from L2; one barrier a phase,
//                   hidden behind the next phase's reading where L2 has room for both
//   kLaunches  (D)  the first launch makes the partial statistics (and adds the residual on the way), the
//   second
//                   applies them; the only one that needs neither room on the chip nor a cooperative launch
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"

namespace fastdiff::cuda {

enum class Variant { kAuto, kBlock, kChip, kPhases, kLaunches };
enum class Path { kRows, kScalars, kColumns };

// One value a channel, [C] or [B, C]; null where not given.
struct Values {
    const void* data;
    bool wide;  // float32, where x may be narrower
};

struct Norm {
    Values weight, bias, add, scale, shift;
    int64_t batch, channels, groups, pixels;
    bool channels_last;  // [B, pixels, C] in memory, else [B, C, pixels]
    int activation;      // 0 none, 1 silu, 2 gelu
    Element element;
};

struct GroupNormSilu {
    Norm norm;
    void* y;
    void* summed;  // x + residual, rounded; only where there is a residual
    const void* x;
    const void* residual;  // or null
    float* mean;           // [B, groups]
    float* rstd;
    double eps;
};

struct GroupNormSiluBackward {
    Norm norm;
    void* dx;
    float* sums;  // [3, B, C]: of dz, of dz * xhat, of dx
    const void* grad;
    const void* x;  // summed, where there was a residual
    const float* mean;
    const float* rstd;
};

// What a GPU offers a launch.
struct Chip {
    int architecture;  // 90 for sm_90
    int sms;
    int64_t shared_block, shared_sm;  // bytes of shared memory a block may ask for, and an SM has
    int64_t l2;                       // bytes
    bool cooperative;                 // whether it launches grids whose blocks can wait for each other
};

struct Plan {
    Variant variant;
    Path path;
    bool edges;         // rows start or end off 16-byte boundaries
    bool ahead;         // kPhases: a phase is gathered before the one before it is applied
    int64_t width;      // channels of a range (columns)
    int64_t teams;      // how many there are
    int64_t per_phase;  // how many at a time
    int64_t phases;
    int64_t slabs;     // blocks of a team
    int64_t slab;      // pieces or pixels of a slab
    int64_t pieces;    // of a row (rows)
    int phase;         // elements that the arrays start past a 16-byte boundary (rows)
    int held;          // vectors a thread holds, those beyond kSlots in shared memory
    int64_t shared;    // bytes of dynamic shared memory a block
    int64_t groups;    // of a team
    int64_t channels;  // whose sums a block leaves in the gradient
    int64_t workspace;
};

constexpr int kNormThreads = 512;
constexpr int kNormWarps = kNormThreads / 32;
// Vectors a thread holds in registers; in the gradient as many of x and of grad. A channels-last thread of
// the gradient also keeps three sums and five factors of each of its channels there.
constexpr int kSlots = 8, kPairs = 4, kColumnPairs = 2;

// aligned: all arrays start at 16-byte boundaries; same_phase: they start equally far from one.
struct Alignment {
    bool aligned, same_phase;
    int phase;  // elements past a boundary, where same_phase
};
Alignment alignment_of(const GroupNormSilu& args);
Alignment alignment_of(const GroupNormSiluBackward& args);

// Which variant and geometry a shape gets: arithmetic over the arguments and group_norm_silu_table.h alone.
// A variant that is wanted but impossible here gives way to the next possible one.
Plan plan_group_norm(
    const Norm& norm, const Alignment& where, const Chip& chip, bool backward, Variant wanted);

// Both return what the launches reported. workspace: plan.workspace bytes at a 16-byte boundary, contents of
// no matter. No elements: nothing is launched, and mean, rstd and sums stay as they are.
cudaError_t group_norm_silu(
    const GroupNormSilu& args, const Plan& plan, void* workspace, cudaStream_t stream);
cudaError_t group_norm_silu_backward(
    const GroupNormSiluBackward& args, const Plan& plan, void* workspace, cudaStream_t stream);

// The two halves of each, by plan.path.
cudaError_t group_norm_silu_rows(const GroupNormSilu&, const Plan&, void* workspace, cudaStream_t);
cudaError_t group_norm_silu_columns(const GroupNormSilu&, const Plan&, void* workspace, cudaStream_t);
cudaError_t group_norm_silu_backward_rows(
    const GroupNormSiluBackward&, const Plan&, void* workspace, cudaStream_t);
cudaError_t group_norm_silu_backward_columns(
    const GroupNormSiluBackward&, const Plan&, void* workspace, cudaStream_t);

}  // namespace fastdiff::cuda
