// group_norm_silu where a group's channels are rows of pixels. Designed for one block of 512 threads an SM,
// so for 128 registers a thread, of which 32 hold x.
#include "group_norm_launch.cuh"
#include "group_norm_rows.cuh"
#include "group_norm_sums.cuh"

namespace fastdiff::cuda {
namespace {

template <typename T>
__device__ __forceinline__ float first_edge(const GroupNormSilu& args, const Place& place) {
    return to_float(first_read<T, 1, Reuse::kUsual>(args, place.at).lane[0]);
}

template <typename T>
__device__ __forceinline__ float edge_again(const GroupNormSilu& args, const Place& place) {
    return to_float(input_of<T>(args)[place.at]);
}

template <typename T>
__device__ __forceinline__ void write_edge(const GroupNormSilu& args, const Place& place, const Channel& c) {
    if (!place.inside) return;
    const auto x = load<Reuse::kUsual, T, 1>(input_of<T>(args) + place.at);
    store<Reuse::kUsual>(static_cast<T*>(args.y) + place.at, normalise(x, c, args.norm.activation));
}

// The statistics of a team of several blocks, from what they left in the workspace; its first block writes
// them.
__device__ inline Statistics team_statistics(
    const GroupNormSilu& args, const Plan& plan, const Moments* parts, int64_t team, Scratch& scratch) {
    const double count = static_cast<double>(args.norm.channels / args.norm.groups) * args.norm.pixels;
    if (threadIdx.x < 32) {
        const Statistics found = combine(parts + team * plan.slabs, plan.slabs, 1, count, args.eps);
        if (threadIdx.x == 0) {
            scratch.statistics = found;
            if (blockIdx.x % plan.slabs == 0) leave_statistics(args, team, found);
        }
    }
    __syncthreads();
    const Statistics found = scratch.statistics;
    __syncthreads();  // before the next phase writes it
    return found;
}

// The first read of a warp's slots; zeros where there is nothing.
template <Reuse kReuse, typename T, int N>
__device__ __forceinline__ void read_tile(
    const GroupNormSilu& args, const Share<N>& share, Pack<T, N> (&slots)[kSlots]) {
    share.template each<kSlots>([&](int slot) {
        const int64_t at = share.place(slot);
        slots[slot] = {};
        if (share.inside(slot)) slots[slot] = load<kReuse, T, N>(static_cast<const T*>(args.x) + at);
    });
    if (args.residual == nullptr) return;
    share.template each<kSlots>([&](int slot) {
        const int64_t at = share.place(slot);
        if (share.inside(slot)) slots[slot] = with_residual<T, N>(args, slots[slot], at);
    });
}

// --- x held between statistics and write: kBlock and kChip ---

// A thread's packs: the first kSlots in registers, the others in shared memory. Zeros where there is none.
template <typename T, int N>
struct Held {
    Pack<T, N> slots[kSlots];
    Pack<T, N>* spare;

    __device__ __forceinline__ void read(const GroupNormSilu& args, const Share<N>& share) {
        read_tile<Reuse::kUsual>(args, share, slots);
        for (int slot = kSlots; slot < share.count; ++slot) {
            const int64_t at = share.place(slot);
            Pack<T, N> pack = {};
            if (share.inside(slot)) pack = first_read<T, N, Reuse::kUsual>(args, at);
            spare[(slot - kSlots) * kNormThreads + threadIdx.x] = pack;
        }
    }

    // visit(slot, pack) for each of the warp's slots.
    template <typename Visit>
    __device__ __forceinline__ void each(const Share<N>& share, Visit visit) const {
        share.template each<kSlots>([&](int slot) { visit(slot, slots[slot]); });
        for (int slot = kSlots; slot < share.count; ++slot)
            visit(slot, spare[(slot - kSlots) * kNormThreads + threadIdx.x]);
    }
};

// The moments of what the block holds: its mean first, then distances from it.
template <typename T, int N>
__device__ __forceinline__ Moments held_moments(
    const GroupNormSilu& args, Held<T, N>& held, const Rows<N>& rows, const Share<N>& share, float add,
    Scratch& scratch) {
    float sums[2] = {0.0f, static_cast<float>(share.own_packs * N)};  // of values, and how many
    held.each(share, [&](int, const Pack<T, N>& x) { sums[0] += sum_of(x); });
    sums[0] = fmaf(add, sums[1], sums[0]);
    share.each_start(rows, [&](int slot, int row) {
        const float own = of_slot(add, slot);
        const Place edge = rows.edge(row);
        if (!edge.inside) return;
        sums[0] += first_edge<T>(args, edge) + own;
        sums[1] += 1.0f;
    });
    block_sum<2, kNormWarps>(sums, scratch.sums);
    forget(held.slots);
    const float count = sums[1], point = sums[0] / count, own_shift = add - point;
    float around[2] = {0.0f, 0.0f};  // sums of distances from the point, and of their squares
    held.each(share, [&](int slot, const Pack<T, N>& x) {
        const float shift = of_slot(own_shift, slot);
        if (share.inside(slot)) gather(around, x, shift);
    });
    share.each_start(rows, [&](int slot, int row) {
        const float shift = of_slot(own_shift, slot);
        const Place edge = rows.edge(row);
        if (edge.inside) gather(around, edge_again<T>(args, edge) + shift);
    });
    block_sum<2, kNormWarps>(around, scratch.sums);
    return moments_around(point, count, around[0], around[1]);
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads, 1)
    norm_rows_held(const GroupNormSilu args, const Plan plan, unsigned char* left) {
    constexpr int N = kVectorBytes / sizeof(T);
    FASTDIFF_DYNAMIC_SHARED(memory);
    Moments* parts = reinterpret_cast<Moments*>(left);
    Scratch& scratch = *reinterpret_cast<Scratch*>(memory);
    const int64_t team = blockIdx.x / plan.slabs;
    const Rows<N> rows(args.norm, plan, team);
    const Slab slab(plan, rows.count);
    const Share<N> share(rows, slab, plan, slab.begin + threadIdx.x / 32 * plan.held, plan.held);
    Held<T, N> held;
    held.spare = reinterpret_cast<Pack<T, N>*>(memory + sizeof(Scratch));
    held.read(args, share);
    const Channel channel = share.template channel<T>(args.norm, rows);
    const Moments moments = held_moments(args, held, rows, share, channel.add, scratch);
    forget(held.slots);
    Statistics found;
    if (plan.slabs == 1) {
        found = finish(moments.mean, moments.squares, moments.count, args.eps);
        if (threadIdx.x == 0) leave_statistics(args, team, found);
    } else {
        if (threadIdx.x == 0) parts[blockIdx.x] = moments;
        FASTDIFF_GRID_SYNC();
        found = team_statistics(args, plan, parts, team, scratch);
    }
    const Channel final = normalised(channel, found.mean, found.rstd);
    held.each(share, [&](int slot, const Pack<T, N>& x) {
        const Channel c = of_slot(final, slot);
        const int64_t at = share.place(slot);
        if (share.inside(slot))
            store<Reuse::kUsual>(static_cast<T*>(args.y) + at, normalise(x, c, args.norm.activation));
    });
    share.each_start(
        rows, [&](int slot, int row) { write_edge<T>(args, rows.edge(row), of_slot(final, slot)); });
}

// --- x read twice: kPhases and kLaunches ---

template <typename T, int N>
__device__ __forceinline__ void gather_tile(
    const GroupNormSilu& args, const Rows<N>& rows, const Share<N>& share, Running& running) {
    Pack<T, N> x[kSlots];
    read_tile<Reuse::kSoon>(args, share, x);
    const float add = share.template channel<T>(args.norm, rows).add;
    float sum = 0.0f, count = 0.0f;
    share.template each<kSlots>([&](int slot) {
        const float own = of_slot(add, slot);
        if (!share.inside(slot)) return;
        sum += fmaf(own, static_cast<float>(N), sum_of(x[slot]));
        count += N;
    });
    forget(x);
    const float point = count == 0.0f ? 0.0f : sum / count;
    float around[2] = {0.0f, 0.0f};
    share.template each<kSlots>([&](int slot) {
        const float shift = of_slot(add, slot) - point;
        if (share.inside(slot)) gather(around, x[slot], shift);
    });
    running.merge({point, count, around[0], around[1]});
    share.each_start(rows, [&](int slot, int row) {
        const float own = of_slot(add, slot);
        const Place edge = rows.edge(row);
        if (edge.inside) running.merge({first_edge<T>(args, edge) + own, 1.0f, 0.0f, 0.0f});
    });
}

template <typename T, int N>
__device__ __forceinline__ void apply_tile(
    const GroupNormSilu& args, const Rows<N>& rows, const Share<N>& share, const Statistics& found) {
    Pack<T, N> x[kSlots];
    share.template each<kSlots>([&](int slot) {
        const int64_t at = share.place(slot);
        if (share.inside(slot)) x[slot] = load<Reuse::kNever, T, N>(input_of<T>(args) + at);
    });
    const Channel final = normalised(share.template channel<T>(args.norm, rows), found.mean, found.rstd);
    share.template each<kSlots>([&](int slot) {
        const Channel c = of_slot(final, slot);
        const int64_t at = share.place(slot);
        if (share.inside(slot))
            store<Reuse::kNever>(static_cast<T*>(args.y) + at, normalise(x[slot], c, args.norm.activation));
    });
    share.each_start(
        rows, [&](int slot, int row) { write_edge<T>(args, rows.edge(row), of_slot(final, slot)); });
}

template <typename T, int N>
__global__ void __launch_bounds__(kNormThreads, 1) norm_rows_stream(
    const GroupNormSilu args, const Plan plan, unsigned* counters, unsigned char* left, Step step) {
    FASTDIFF_DYNAMIC_SHARED(memory);
    Moments* parts = reinterpret_cast<Moments*>(left);
    Scratch& scratch = *reinterpret_cast<Scratch*>(memory);
    const Slab slab(plan, args.norm.channels / args.norm.groups);
    const int from = slab.begin + threadIdx.x / 32 * kSlots;
    const auto gather_team = [&](int team) {
        const Rows<N> rows(args.norm, plan, team);
        Running running = {};
        for (int at = from; at < slab.end; at += kNormWarps * kSlots)
            gather_tile<T>(args, rows, Share<N>(rows, slab, plan, at, kSlots), running);
        const Moments moments = running.over_block(scratch.sums);
        if (threadIdx.x == 0) parts[team * plan.slabs + blockIdx.x % plan.slabs] = moments;
    };
    const auto apply_team = [&](int team) {
        const Rows<N> rows(args.norm, plan, team);
        const Statistics found = team_statistics(args, plan, parts, team, scratch);
        for (int at = from; at < slab.end; at += kNormWarps * kSlots)
            apply_tile<T>(args, rows, Share<N>(rows, slab, plan, at, kSlots), found);
    };
    in_phases(plan, counters, step, gather_team, apply_team);
}

template <typename T>
cudaError_t launch_rows(const GroupNormSilu& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    constexpr int N = kVectorBytes / sizeof(T);
    if (plan.variant == Variant::kBlock || plan.variant == Variant::kChip)
        return launch_held(norm_rows_held<T>, args, plan, workspace, stream);
    return launch_stream(
        plan.path == Path::kRows ? norm_rows_stream<T, N> : norm_rows_stream<T, 1>, args, plan, workspace,
        stream);
}

}  // namespace

cudaError_t group_norm_silu_rows(
    const GroupNormSilu& args, const Plan& plan, void* workspace, cudaStream_t stream) {
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
