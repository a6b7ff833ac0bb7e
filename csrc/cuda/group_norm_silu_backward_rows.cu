// The gradient of group_norm_silu where a group's channels are rows of pixels. Designed for one block of 512
// threads an SM, so for 128 registers a thread, of which 32 hold x and grad. Every piece's sums go to a table
// in shared memory, those of a row to the workspace, so that their order is fixed.
#include "group_norm_grad.cuh"
#include "group_norm_launch.cuh"
#include "group_norm_rows.cuh"

namespace fastdiff::cuda {
namespace {

struct Scratch {
    float sums[2 * kNormWarps];
    Shares shares;
};
static_assert(sizeof(Scratch) <= kScratchBytes, "as the plan has it");

// One block's view of its team.
template <typename T, int N>
struct Work {
    const GroupNormSiluBackward& args;
    const Plan& plan;
    Rows<N> rows;
    Slab slab;
    int team;
    unsigned char *memory, *workspace;

    __device__ __forceinline__ Work(
        const GroupNormSiluBackward& args, const Plan& plan, int team, unsigned char* memory,
        unsigned char* workspace)
        : args(args),
          plan(plan),
          rows(args.norm, plan, team),
          slab(plan, rows.count),
          team(team),
          memory(memory),
          workspace(workspace) {}

    // Worked out where they are used, as registers are short.
    __device__ __forceinline__ Scratch* scratch() const { return reinterpret_cast<Scratch*>(memory); }
    __device__ __forceinline__ Sums* table() const {  // of the slab's pieces
        return reinterpret_cast<Sums*>(memory + kScratchBytes);
    }
    __device__ __forceinline__ int64_t first_block() const { return team * plan.slabs; }
    __device__ __forceinline__ int64_t block() const { return first_block() + blockIdx.x % plan.slabs; }
    __device__ __forceinline__ Shares* parts() const { return reinterpret_cast<Shares*>(workspace); }
    __device__ __forceinline__ Sums* left() const {  // by the blocks, of the rows each touches
        return reinterpret_cast<Sums*>(workspace + group_bytes(plan, kSharesBytes));
    }

    __device__ __forceinline__ Channel channel(int row) const {
        return channel_of<T>(args, rows.sample, rows.channel + row);
    }
    __device__ __forceinline__ Channel own_channel(const Share<N>& share) const {
        return static_cast<int>(threadIdx.x % 32) < share.count ? channel(share.own_row) : Channel{};
    }
    __device__ __forceinline__ float edge_of(const void* array, const Place& place) const {
        return to_float(static_cast<const T*>(array)[place.at]);
    }

    // The slots [from, from + kPairs) of a share.
    template <Reuse kReuse>
    __device__ __forceinline__ void read(
        const Share<N>& share, int from, Pack<T, N> (&x)[kPairs], Pack<T, N> (&grad)[kPairs]) const {
#pragma unroll
        for (int s = 0; s < kPairs; ++s) {
            if (from + s >= share.count) continue;
            const int64_t at = share.place(from + s);
            if (!share.inside(from + s)) continue;
            x[s] = load<kReuse, T, N>(static_cast<const T*>(args.x) + at);
            grad[s] = load<kReuse, T, N>(static_cast<const T*>(args.grad) + at);
        }
    }

    // Their sums, into the table.
    __device__ __forceinline__ void sum(
        const Share<N>& share, int from, const Pack<T, N> (&x)[kPairs], const Pack<T, N> (&grad)[kPairs],
        const Channel& own) const {
        float value[4 * kPairs];
#pragma unroll
        for (int s = 0; s < kPairs; ++s) {
            Sums sums = {};
            if (from + s < share.count) {
                const Channel c = of_slot(own, from + s);
                if (share.inside(from + s)) {
#pragma unroll
                    for (int i = 0; i < N; ++i)
                        gather(
                            sums, to_float(x[s].lane[i]), to_float(grad[s].lane[i]), c, args.norm.activation);
                }
            }
            value[4 * s] = sums.grad;
            value[4 * s + 1] = sums.product;
            value[4 * s + 2] = sums.value;
            value[4 * s + 3] = 0.0f;
        }
        const float total = warp_transposed_sum<2 * kPairs>(value);
        const int lane = threadIdx.x % 32, slot = from + lane / 4;
        if (lane < 4 * kPairs && slot < share.count)
            reinterpret_cast<float*>(table() + (share.at - slab.begin + slot))[lane % 4] = total;
    }

    // The edges of the rows that begin in a share, after its pieces.
    __device__ __forceinline__ void sum_edges(const Share<N>& share, const Channel& own) const {
        __syncwarp();
        share.each_start(rows, [&](int slot, int row) {
            const Channel c = of_slot(own, slot);
            const Place edge = rows.edge(row);
            Sums sums = {};
            if (edge.inside)
                gather(sums, edge_of(args.x, edge), edge_of(args.grad, edge), c, args.norm.activation);
            sums.over_warp();
            if (threadIdx.x % 32 == 0) table()[share.at - slab.begin + slot].add(sums);
        });
    }

    // From the table: each row's sums and the group's parts, for the team.
    __device__ __forceinline__ void leave() const {
        __syncthreads();
        const int pieces = static_cast<int>(plan.pieces), first = slab.begin / pieces;
        float part[2] = {0.0f, 0.0f};
        for (int row = first + threadIdx.x / 32; row * pieces < slab.end; row += kNormWarps) {
            const int start = row * pieces, stop = start + pieces;
            const int from = start < slab.begin ? slab.begin : start, to = stop < slab.end ? stop : slab.end;
            Sums sums = {};
#pragma unroll 1
            for (int piece = from + threadIdx.x % 32; piece < to; piece += 32)
                sums.add(table()[piece - slab.begin]);
            sums.over_warp();
            if (threadIdx.x % 32 != 0) continue;
            left()[block() * plan.channels + row - first] = sums;
            const Shares own = part_of(sums, channel(row));
            part[0] += own.first;
            part[1] += own.second;
        }
        block_sum<2, kNormWarps>(part, scratch()->sums);
        if (threadIdx.x == 0) parts()[block()] = {part[0], part[1]};
    }

    __device__ __forceinline__ Shares team_shares() const {
        if (threadIdx.x < 32) {
            const double count = static_cast<double>(rows.count) * args.norm.pixels;
            const Shares found = shares_of(parts() + first_block(), plan.slabs, 1, count, args.rstd[team]);
            if (threadIdx.x == 0) scratch()->shares = found;
        }
        __syncthreads();
        const Shares found = scratch()->shares;
        __syncthreads();
        return found;
    }

    // The sums of the rows that begin in this slab, whichever slabs they reach into.
    __device__ __forceinline__ void finish_rows(const Shares& shares) const {
        const int pieces = static_cast<int>(plan.pieces), each = static_cast<int>(plan.slab);
        for (int row = (slab.begin + pieces - 1) / pieces + threadIdx.x / 32; row * pieces < slab.end;
             row += kNormWarps) {
            Sums sums = {};
            const int last = ((row + 1) * pieces - 1) / each;
#pragma unroll 1
            for (int s = row * pieces / each + threadIdx.x % 32; s <= last; s += 32)
                sums.add(
                    load_fresh_sums(left() + (first_block() + s) * plan.channels + row - s * each / pieces));
            sums.over_warp();
            if (threadIdx.x % 32 == 0)
                leave_sums(args, rows.sample, rows.channel + row, sums, channel(row), shares);
        }
    }

    template <Reuse kReuse>
    __device__ __forceinline__ void write(
        const Share<N>& share, int from, const Pack<T, N> (&x)[kPairs], const Pack<T, N> (&grad)[kPairs],
        const Channel& own, const Shares& shares) const {
#pragma unroll
        for (int s = 0; s < kPairs; ++s) {
            if (from + s >= share.count) continue;
            const Channel c = of_slot(own, from + s);
            const int64_t at = share.place(from + s);
            if (!share.inside(from + s)) continue;
            Pack<T, N> dx;
#pragma unroll
            for (int i = 0; i < N; ++i)
                dx.lane[i] = from_float<T>(gradient(
                    to_float(x[s].lane[i]), to_float(grad[s].lane[i]), c, shares, args.norm.activation));
            store<kReuse>(static_cast<T*>(args.dx) + at, dx);
        }
    }

    __device__ __forceinline__ void write_edges(
        const Share<N>& share, const Channel& own, const Shares& shares) const {
        share.each_start(rows, [&](int slot, int row) {
            const Channel c = of_slot(own, slot);
            const Place edge = rows.edge(row);
            if (edge.inside)
                static_cast<T*>(args.dx)[edge.at] = from_float<T>(gradient(
                    edge_of(args.x, edge), edge_of(args.grad, edge), c, shares, args.norm.activation));
        });
    }
};

// kBlock and kChip: pairs beyond the registers' in shared memory, kPairs of x and kPairs of grad a round.
template <typename T>
__global__ void __launch_bounds__(kNormThreads, 1)
    norm_backward_rows_held(const GroupNormSiluBackward args, const Plan plan, unsigned char* workspace) {
    constexpr int N = kVectorBytes / sizeof(T);
    FASTDIFF_DYNAMIC_SHARED(memory);
    using P = Pack<T, N>;
    const Work<T, N> work(args, plan, static_cast<int>(blockIdx.x / plan.slabs), memory, workspace);
    const Share<N> share(
        work.rows, work.slab, plan, work.slab.begin + threadIdx.x / 32 * plan.held, plan.held);
    const Channel own = work.own_channel(share);
    P* spare = reinterpret_cast<P*>(work.table() + plan.slab) + threadIdx.x;
    P x[kPairs], grad[kPairs];
    for (int from = kPairs; from < share.count; from += kPairs) {
        P more[kPairs], others[kPairs];
        work.template read<Reuse::kUsual>(share, from, more, others);
        work.sum(share, from, more, others, own);
#pragma unroll
        for (int s = 0; s < kPairs; ++s) {
            if (from + s >= share.count) continue;
            spare[(2 * (from + s - kPairs)) * kNormThreads] = more[s];
            spare[(2 * (from + s - kPairs) + 1) * kNormThreads] = others[s];
        }
    }
    work.template read<Reuse::kUsual>(share, 0, x, grad);
    work.sum(share, 0, x, grad, own);
    work.sum_edges(share, own);
    work.leave();
    if (plan.slabs == 1)
        __syncthreads();
    else
        FASTDIFF_GRID_SYNC();
    const Shares shares = work.team_shares();
    work.finish_rows(shares);
    forget(x, grad);
    for (int from = 0; from < share.count; from += kPairs) {
        if (from > 0) {
#pragma unroll
            for (int s = 0; s < kPairs; ++s) {
                if (from + s >= share.count) continue;
                x[s] = spare[(2 * (from + s - kPairs)) * kNormThreads];
                grad[s] = spare[(2 * (from + s - kPairs) + 1) * kNormThreads];
            }
        }
        work.template write<Reuse::kUsual>(share, from, x, grad, own, shares);
    }
    work.write_edges(share, own, shares);
}

// kPhases and kLaunches.
template <typename T, int N>
__global__ void __launch_bounds__(kNormThreads, 1) norm_backward_rows_stream(
    const GroupNormSiluBackward args, const Plan plan, unsigned* counters, unsigned char* workspace,
    Step step) {
    FASTDIFF_DYNAMIC_SHARED(memory);
    using P = Pack<T, N>;
    constexpr int kRound = kNormWarps * kPairs;
    const auto gather_team = [&](int team) {
        const Work<T, N> work(args, plan, team, memory, workspace);
        const int begin = work.slab.begin + static_cast<int>(threadIdx.x) / 32 * kPairs;
        for (int at = begin; at < work.slab.end; at += kRound) {
            const Share<N> share(work.rows, work.slab, plan, at, kPairs);
            P x[kPairs], grad[kPairs];
            work.template read<Reuse::kSoon>(share, 0, x, grad);
            const Channel own = work.own_channel(share);
            work.sum(share, 0, x, grad, own);
            work.sum_edges(share, own);
        }
        work.leave();
    };
    const auto apply_team = [&](int team) {
        const Work<T, N> work(args, plan, team, memory, workspace);
        const int begin = work.slab.begin + static_cast<int>(threadIdx.x) / 32 * kPairs;
        const Shares shares = work.team_shares();
        work.finish_rows(shares);
        for (int at = begin; at < work.slab.end; at += kRound) {
            const Share<N> share(work.rows, work.slab, plan, at, kPairs);
            P x[kPairs], grad[kPairs];
            work.template read<Reuse::kNever>(share, 0, x, grad);
            const Channel own = work.own_channel(share);
            work.template write<Reuse::kNever>(share, 0, x, grad, own, shares);
            work.write_edges(share, own, shares);
        }
    };
    in_phases(plan, counters, step, gather_team, apply_team);
}

template <typename T>
cudaError_t launch_rows(
    const GroupNormSiluBackward& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    constexpr int N = kVectorBytes / sizeof(T);
    if (plan.variant == Variant::kBlock || plan.variant == Variant::kChip)
        return launch_held(norm_backward_rows_held<T>, args, plan, workspace, stream);
    return launch_stream(
        plan.path == Path::kRows ? norm_backward_rows_stream<T, N> : norm_backward_rows_stream<T, 1>, args,
        plan, workspace, stream);
}

}  // namespace

cudaError_t group_norm_silu_backward_rows(
    const GroupNormSiluBackward& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    switch (args.norm.element) {
        case Element::kFloat32:
            return launch_rows<float>(args, plan, workspace, stream);
        case Element::kFloat16:
            return launch_rows<__half>(args, plan, workspace, stream);
        case Element::kBfloat16:
            return launch_rows<__nv_bfloat16>(args, plan, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace fastdiff::cuda
