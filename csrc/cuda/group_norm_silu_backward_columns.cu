// The gradient of group_norm_silu on channels-last images. Designed for one block of 512 threads an SM, so
// for 128 registers a thread, of which 32 hold x and grad.
#include "group_norm_columns.cuh"
#include "group_norm_grad.cuh"
#include "group_norm_launch.cuh"

namespace fastdiff::cuda {
namespace {

// One block's view of its team, and a thread's channels with their sums.
template <typename T, int N>
struct Work {
    const GroupNormSiluBackward& args;
    const Plan& plan;
    Columns<N> columns;
    Tables tables;
    int64_t team, block;  // block: among all the slabs
    Shares* parts;        // of every slab's groups
    Sums* left;           // of every slab's channels
    Channel channels[N];
    float sums[3][N] = {};

    __device__ __forceinline__ Work(
        const GroupNormSiluBackward& args, const Plan& plan, int64_t team, unsigned char* memory,
        unsigned char* workspace)
        : args(args),
          plan(plan),
          columns(args.norm, plan, team),
          tables(memory, N, columns.width, columns.groups, 3),
          team(team) {
        block = team * plan.slabs + blockIdx.x % plan.slabs;
        parts = reinterpret_cast<Shares*>(workspace);
        left = reinterpret_cast<Sums*>(workspace + group_bytes(plan, kSharesBytes));
        take_channels();
    }

    __device__ __forceinline__ void take_channels() {
#pragma unroll
        for (int i = 0; i < N; ++i)
            channels[i] = columns.active() ? channel(columns.column * N + i) : Channel{};
    }

    __device__ __forceinline__ Channel channel(int own) const {
        return channel_of<T>(args, columns.sample, columns.channel + own);
    }
    __device__ __forceinline__ float group_rstd(int g) const {
        return args.rstd[columns.sample * args.norm.groups + columns.first_group + g];
    }

    // Up to kColumnPairs pixels from one on; returns how many there are.
    template <Reuse kReuse>
    __device__ __forceinline__ int read(
        int64_t pixel, Pack<T, N> (&x)[kColumnPairs], Pack<T, N> (&grad)[kColumnPairs]) const {
        int more = 0;
#pragma unroll
        for (int s = 0; s < kColumnPairs; ++s) {
            const int64_t at = pixel + s * columns.together;
            if (at >= columns.end) continue;
            x[s] = load<kReuse, T, N>(static_cast<const T*>(args.x) + columns.place(at));
            grad[s] = load<kReuse, T, N>(static_cast<const T*>(args.grad) + columns.place(at));
            more = s + 1;
        }
        return more;
    }

    __device__ __forceinline__ void sum(
        const Pack<T, N> (&x)[kColumnPairs], const Pack<T, N> (&grad)[kColumnPairs], int more) {
#pragma unroll
        for (int s = 0; s < kColumnPairs; ++s) {
            if (s >= more) continue;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                Sums own = {sums[0][i], sums[1][i], sums[2][i], 0.0f};
                gather(
                    own, to_float(x[s].lane[i]), to_float(grad[s].lane[i]), channels[i],
                    args.norm.activation);
                sums[0][i] = own.grad;
                sums[1][i] = own.product;
                sums[2][i] = own.value;
            }
        }
    }

    // A channel's sums, from the parts in shared memory.
    __device__ __forceinline__ Sums channel_sums(int own, int split) const {
        const int size = static_cast<int>(part_size(columns.width));
        Sums total = {};
#pragma unroll 1
        for (int p = 0; p < split; ++p) {
            const float* part = tables.parts + p * columns.width + own;
            total.add({part[0], part[size], part[2 * size], 0.0f});
        }
        return total;
    }

    // The block's sums of each channel and its parts of each group, for the team.
    __device__ __forceinline__ void leave() const {
        const int split = sum_by_channel(sums, columns, tables);
        __syncthreads();
        for (int g = threadIdx.x / 32; g < columns.groups; g += kNormWarps) {
            Shares part = {0.0f, 0.0f};
#pragma unroll 1
            for (int c = threadIdx.x % 32; c < columns.per_group; c += 32) {
                const int own = g * columns.per_group + c;
                const Sums total = channel_sums(own, split);
                left[block * plan.channels + own] = total;
                const Shares more = part_of(total, channel(own));
                part.first += more.first;
                part.second += more.second;
            }
            part = {warp_sum(part.first), warp_sum(part.second)};
            if (threadIdx.x % 32 == 0) parts[block * columns.groups + g] = part;
        }
        __syncthreads();  // before the next phase writes the tables
    }

    // Every group's shares, into shared memory.
    __device__ __forceinline__ Shares* team_shares() const {
        Shares* shares = reinterpret_cast<Shares*>(tables.statistics);
        const double count = static_cast<double>(args.norm.pixels) * columns.per_group;
        for (int g = threadIdx.x / 32; g < columns.groups; g += kNormWarps) {
            const Shares* own = parts + team * plan.slabs * columns.groups + g;
            const Shares found = shares_of(own, plan.slabs, columns.groups, count, group_rstd(g));
            if (threadIdx.x % 32 == 0) shares[g] = found;
        }
        __syncthreads();
        return shares;
    }

    // The team's warps share its channels, each adding up what all slabs left.
    __device__ __forceinline__ void finish_channels(const Shares* shares) const {
        const int64_t warp = blockIdx.x % plan.slabs * kNormWarps + threadIdx.x / 32;
        for (int64_t own = warp; own < columns.width; own += plan.slabs * kNormWarps) {
            Sums total = {};
#pragma unroll 1
            for (int64_t s = threadIdx.x % 32; s < plan.slabs; s += 32)
                total.add(load_fresh_sums(left + (team * plan.slabs + s) * plan.channels + own));
            total.over_warp();
            if (threadIdx.x % 32 == 0)
                leave_sums(
                    args, columns.sample, columns.channel + own, total, channel(static_cast<int>(own)),
                    shares[own / columns.per_group]);
        }
    }

    // This thread's channels' shares.
    __device__ __forceinline__ void take_shares(const Shares* shares, Shares (&own)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i)
            own[i] = columns.active() ? shares[columns.group_of(i)] : Shares{0.0f, 0.0f};
        __syncthreads();  // before the next phase writes them
    }

    template <Reuse kReuse>
    __device__ __forceinline__ void write(
        int64_t pixel, const Pack<T, N> (&x)[kColumnPairs], const Pack<T, N> (&grad)[kColumnPairs], int more,
        const Shares (&shares)[N]) const {
#pragma unroll
        for (int s = 0; s < kColumnPairs; ++s) {
            if (s >= more) continue;
            Pack<T, N> dx;
#pragma unroll
            for (int i = 0; i < N; ++i)
                dx.lane[i] = from_float<T>(gradient(
                    to_float(x[s].lane[i]), to_float(grad[s].lane[i]), channels[i], shares[i],
                    args.norm.activation));
            store<kReuse>(static_cast<T*>(args.dx) + columns.place(pixel + s * columns.together), dx);
        }
    }
};

// kBlock and kChip: pairs beyond the registers' in shared memory.
template <typename T>
__global__ void __launch_bounds__(kNormThreads, 1)
    norm_backward_columns_held(const GroupNormSiluBackward args, const Plan plan, unsigned char* workspace) {
    constexpr int N = kVectorBytes / sizeof(T);
    FASTDIFF_DYNAMIC_SHARED(memory);
    using P = Pack<T, N>;
    Work<T, N> work(args, plan, blockIdx.x / plan.slabs, memory, workspace);
    P* spare = reinterpret_cast<P*>(work.tables.spare) + threadIdx.x;
    const int64_t step = kColumnPairs * work.columns.together, begin = work.columns.begin,
                  end = work.columns.end;
    P x[kColumnPairs], grad[kColumnPairs];
    P* to = spare;
#pragma unroll 1
    for (int64_t pixel = begin + step; pixel < end; pixel += step, to += 2 * kColumnPairs * kNormThreads) {
        P more[kColumnPairs], others[kColumnPairs];
        const int count = work.template read<Reuse::kUsual>(pixel, more, others);
        work.sum(more, others, count);
#pragma unroll
        for (int s = 0; s < kColumnPairs; ++s) {
            if (s >= count) continue;
            to[2 * s * kNormThreads] = more[s];
            to[(2 * s + 1) * kNormThreads] = others[s];
        }
    }
    const int first = work.template read<Reuse::kUsual>(begin, x, grad);
    work.sum(x, grad, first);
    work.leave();
    if (plan.slabs == 1)
        __syncthreads();
    else
        FASTDIFF_GRID_SYNC();
    const Shares* team = work.team_shares();
    work.finish_channels(team);
    Shares shares[N];
    work.take_shares(team, shares);
    work.take_channels();  // again: kept over the barrier they would spill
    forget(x, grad);
    int count = first;
    to = spare;
#pragma unroll 1
    for (int64_t pixel = begin; pixel < end; pixel += step) {
        work.template write<Reuse::kUsual>(pixel, x, grad, count, shares);
        count = 0;
#pragma unroll
        for (int s = 0; s < kColumnPairs; ++s) {
            if (pixel + step + s * work.columns.together >= end) continue;
            x[s] = to[2 * s * kNormThreads];
            grad[s] = to[(2 * s + 1) * kNormThreads];
            count = s + 1;
        }
        to += 2 * kColumnPairs * kNormThreads;
    }
}

// kPhases and kLaunches.
template <typename T>
__global__ void __launch_bounds__(kNormThreads, 1) norm_backward_columns_stream(
    const GroupNormSiluBackward args, const Plan plan, unsigned* counters, unsigned char* workspace,
    Step step) {
    constexpr int N = kVectorBytes / sizeof(T);
    FASTDIFF_DYNAMIC_SHARED(memory);
    using P = Pack<T, N>;
    const auto gather_team = [&](int team) {
        Work<T, N> work(args, plan, team, memory, workspace);
        const Columns<N>& c = work.columns;
        for (int64_t pixel = c.begin; pixel < c.end; pixel += kColumnPairs * c.together) {
            P x[kColumnPairs], grad[kColumnPairs];
            work.sum(x, grad, work.template read<Reuse::kSoon>(pixel, x, grad));
        }
        work.leave();
    };
    const auto apply_team = [&](int team) {
        const Work<T, N> work(args, plan, team, memory, workspace);
        const Columns<N>& c = work.columns;
        const Shares* found = work.team_shares();
        work.finish_channels(found);
        Shares shares[N];
        work.take_shares(found, shares);
        for (int64_t pixel = c.begin; pixel < c.end; pixel += kColumnPairs * c.together) {
            P x[kColumnPairs], grad[kColumnPairs];
            const int more = work.template read<Reuse::kNever>(pixel, x, grad);
            work.template write<Reuse::kNever>(pixel, x, grad, more, shares);
        }
    };
    in_phases(plan, counters, step, gather_team, apply_team);
}

template <typename T>
cudaError_t launch_columns(
    const GroupNormSiluBackward& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    if (plan.variant == Variant::kBlock || plan.variant == Variant::kChip)
        return launch_held(norm_backward_columns_held<T>, args, plan, workspace, stream);
    return launch_stream(norm_backward_columns_stream<T>, args, plan, workspace, stream);
}

}  // namespace

cudaError_t group_norm_silu_backward_columns(
    const GroupNormSiluBackward& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    switch (args.norm.element) {
        case Element::kFloat32:
            return launch_columns<float>(args, plan, workspace, stream);
        case Element::kFloat16:
            return launch_columns<__half>(args, plan, workspace, stream);
        case Element::kBfloat16:
            return launch_columns<__nv_bfloat16>(args, plan, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace fastdiff::cuda
