// group_norm_silu on channels-last images. Designed for one block of 512 threads an SM, so for 128 registers
// a thread, of which 32 hold x.
#include "group_norm_columns.cuh"
#include "group_norm_launch.cuh"
#include "group_norm_sums.cuh"

namespace fastdiff::cuda {
namespace {

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> normalise(
    const Pack<T, N>& x, const Channel (&channels)[N], int activation) {
    float z[N];
#pragma unroll
    for (int i = 0; i < N; ++i)
        z[i] = fmaf(to_float(x.lane[i]) + channels[i].add, channels[i].gain, channels[i].offset);
    return activated<T>(z, activation);
}

template <typename T, int N>
__device__ __forceinline__ void finish_channels(
    const Norm& norm, const Columns<N>& columns, const Tables& tables, Channel (&channels)[N]) {
    channels_of<T>(norm, columns, channels);
    if (!columns.active()) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const Statistics found = tables.statistics[columns.group_of(i)];
        channels[i] = normalised(channels[i], found.mean, found.rstd);
    }
}

// The sums of values and then of distances from the groups' means; moments(g) afterwards.
template <int N>
__device__ __forceinline__ Moments
moments_of_group(const Columns<N>& columns, const Tables& tables, const float* points, int g) {
    const float count = static_cast<float>(static_cast<double>(columns.pixels) * columns.per_group);
    return moments_around(points[g], count, tables.totals[g], tables.totals[columns.groups + g]);
}

// Every group's statistics, from what the team's blocks left, into shared memory; the first block writes them
// out.
template <int N>
__device__ __forceinline__ void team_statistics(
    const GroupNormSilu& args, const Plan& plan, const Columns<N>& columns, const Tables& tables,
    const Moments* parts, int64_t team) {
    const double count = static_cast<double>(args.norm.pixels) * columns.per_group;
    for (int g = threadIdx.x / 32; g < columns.groups; g += kNormWarps) {
        const Moments* own = parts + team * plan.slabs * columns.groups + g;
        const Statistics found = combine(own, plan.slabs, columns.groups, count, args.eps);
        if (threadIdx.x % 32 == 0) {
            tables.statistics[g] = found;
            if (blockIdx.x % plan.slabs == 0)
                leave_statistics(args, columns.sample * args.norm.groups + columns.first_group + g, found);
        }
    }
    __syncthreads();
}

// Where each group's point is kept between the two sums: the second sum leaves the statistics' place alone.
__device__ __forceinline__ float* points_of(const Tables& tables) {
    return reinterpret_cast<float*>(tables.statistics);
}

// Group means from the first totals.
template <int N>
__device__ __forceinline__ void set_points(const Columns<N>& columns, const Tables& tables) {
    const float count = static_cast<float>(static_cast<double>(columns.pixels) * columns.per_group);
    for (int g = threadIdx.x; g < columns.groups; g += kNormThreads)
        points_of(tables)[g] = count == 0.0f ? 0.0f : tables.totals[g] / count;
    __syncthreads();
}

// --- x held between statistics and write: kBlock and kChip ---

template <typename T, int N>
struct Held {
    Pack<T, N> slots[kSlots];
    Pack<T, N>* spare;
    int count;  // of this thread

    __device__ __forceinline__ void read(const GroupNormSilu& args, const Columns<N>& columns) {
        const int64_t rest = columns.end - columns.begin;
        count = rest > 0 ? static_cast<int>(ceil_div(rest, columns.together)) : 0;
        const T* x = static_cast<const T*>(args.x);
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
            if (s < count)
                slots[s] = load<Reuse::kUsual, T, N>(x + columns.place(columns.begin + s * columns.together));
        if (args.residual) {
#pragma unroll
            for (int s = 0; s < kSlots; ++s)
                if (s < count)
                    slots[s] = with_residual<T, N>(
                        args, slots[s], columns.place(columns.begin + s * columns.together));
        }
        for (int s = kSlots; s < count; ++s)
            spare[(s - kSlots) * kNormThreads + threadIdx.x] = first_read<T, N, Reuse::kUsual>(
                args, columns.place(columns.begin + static_cast<int64_t>(s) * columns.together));
    }

    // visit(slot, pack)
    template <typename Visit>
    __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
            if (s < count) visit(s, slots[s]);
        for (int s = kSlots; s < count; ++s) visit(s, spare[(s - kSlots) * kNormThreads + threadIdx.x]);
    }
};

template <typename T, int N>
__device__ __forceinline__ void held_moments(
    Held<T, N>& held, const Columns<N>& columns, const Tables& tables, const Channel (&channels)[N]) {
    float sums[1][N] = {};
    held.each([&](int, const Pack<T, N>& x) {
#pragma unroll
        for (int i = 0; i < N; ++i) sums[0][i] += to_float(x.lane[i]);
    });
#pragma unroll
    for (int i = 0; i < N; ++i)
        sums[0][i] = fmaf(channels[i].add, static_cast<float>(held.count), sums[0][i]);
    sum_by_group(sums, columns, tables);
    set_points(columns, tables);
    forget(held.slots);
    float shift[N], around[2][N] = {};
#pragma unroll
    for (int i = 0; i < N; ++i)
        shift[i] = columns.active() ? channels[i].add - points_of(tables)[columns.group_of(i)] : 0.0f;
    held.each([&](int, const Pack<T, N>& x) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float distance = to_float(x.lane[i]) + shift[i];
            around[0][i] += distance;
            around[1][i] = fmaf(distance, distance, around[1][i]);
        }
    });
    sum_by_group(around, columns, tables);
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads, 1)
    norm_columns_held(const GroupNormSilu args, const Plan plan, unsigned char* left) {
    constexpr int N = kVectorBytes / sizeof(T);
    FASTDIFF_DYNAMIC_SHARED(memory);
    Moments* parts = reinterpret_cast<Moments*>(left);
    const int64_t team = blockIdx.x / plan.slabs;
    const Columns<N> columns(args.norm, plan, team);
    const Tables tables(memory, N, columns.width, columns.groups, 2);
    Held<T, N> held;
    held.spare = reinterpret_cast<Pack<T, N>*>(tables.spare);
    held.read(args, columns);
    Channel channels[N];
    channels_of<T>(args.norm, columns, channels);
    held_moments(held, columns, tables, channels);
    Moments* own = parts + static_cast<int64_t>(blockIdx.x) * columns.groups;
    for (int g = threadIdx.x; g < columns.groups; g += kNormThreads)
        own[g] = moments_of_group(columns, tables, points_of(tables), g);
    if (plan.slabs == 1)
        __syncthreads();
    else
        FASTDIFF_GRID_SYNC();
    team_statistics(args, plan, columns, tables, parts, team);
    finish_channels<T>(args.norm, columns, tables, channels);
    forget(held.slots);
    T* y = static_cast<T*>(args.y);
    held.each([&](int s, const Pack<T, N>& x) {
        const int64_t at = columns.place(columns.begin + static_cast<int64_t>(s) * columns.together);
        store<Reuse::kUsual>(y + at, normalise(x, channels, args.norm.activation));
    });
}

// --- x read twice: kPhases and kLaunches ---

template <typename T, Reuse kReuse, int N>
__device__ __forceinline__ int read_tile(
    const T* from, const Columns<N>& columns, int64_t pixel, Pack<T, N> (&x)[kSlots]) {
    int more = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
        const int64_t at = pixel + s * columns.together;
        if (at < columns.end) {
            x[s] = load<kReuse, T, N>(from + columns.place(at));
            more = s + 1;
        }
    }
    return more;
}

template <typename T, int N>
__device__ __forceinline__ void gather_columns(
    const GroupNormSilu& args, const Columns<N>& columns, const Tables& tables) {
    RunningLanes<N> running;
    for (int64_t pixel = columns.begin; pixel < columns.end; pixel += kSlots * columns.together) {
        Pack<T, N> x[kSlots];
        const int more = read_tile<T, Reuse::kSoon>(static_cast<const T*>(args.x), columns, pixel, x);
        if (args.residual) {
#pragma unroll
            for (int s = 0; s < kSlots; ++s)
                if (s < more)
                    x[s] = with_residual<T, N>(args, x[s], columns.place(pixel + s * columns.together));
        }
        running.merge(x, more);
    }
    Channel channels[N];
    channels_of<T>(args.norm, columns, channels);
    float sums[1][N], around[2][N];
#pragma unroll
    for (int i = 0; i < N; ++i)
        sums[0][i] = running.first[i] + running.count * (running.point[i] + channels[i].add);
    sum_by_group(sums, columns, tables);
    set_points(columns, tables);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        Running own = {running.point[i], running.count, running.first[i], running.second[i]};
        if (columns.active()) own.move_to(points_of(tables)[columns.group_of(i)] - channels[i].add);
        around[0][i] = own.first;
        around[1][i] = own.second;
    }
    sum_by_group(around, columns, tables);
}

template <typename T, int N>
__device__ __forceinline__ void apply_columns(
    const GroupNormSilu& args, const Columns<N>& columns, const Channel (&channels)[N]) {
    T* y = static_cast<T*>(args.y);
    for (int64_t pixel = columns.begin; pixel < columns.end; pixel += kSlots * columns.together) {
        Pack<T, N> x[kSlots];
        const int more = read_tile<T, Reuse::kNever>(input_of<T>(args), columns, pixel, x);
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
            if (s < more)
                store<Reuse::kNever>(
                    y + columns.place(pixel + s * columns.together),
                    normalise(x[s], channels, args.norm.activation));
    }
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads, 1) norm_columns_stream(
    const GroupNormSilu args, const Plan plan, unsigned* counters, unsigned char* left, Step step) {
    constexpr int N = kVectorBytes / sizeof(T);
    FASTDIFF_DYNAMIC_SHARED(memory);
    Moments* parts = reinterpret_cast<Moments*>(left);
    const auto gather_team = [&](int team) {
        const Columns<N> columns(args.norm, plan, team);
        const Tables tables(memory, N, columns.width, columns.groups, 2);
        gather_columns<T>(args, columns, tables);
        Moments* own = parts + (team * plan.slabs + blockIdx.x % plan.slabs) * columns.groups;
        for (int g = threadIdx.x; g < columns.groups; g += kNormThreads)
            own[g] = moments_of_group(columns, tables, points_of(tables), g);
        __syncthreads();  // before the next phase writes the tables
    };
    const auto apply_team = [&](int team) {
        const Columns<N> columns(args.norm, plan, team);
        const Tables tables(memory, N, columns.width, columns.groups, 2);
        team_statistics(args, plan, columns, tables, parts, team);
        Channel channels[N];
        finish_channels<T>(args.norm, columns, tables, channels);
        __syncthreads();
        apply_columns<T>(args, columns, channels);
    };
    in_phases(plan, counters, step, gather_team, apply_team);
}

template <typename T>
cudaError_t launch_columns(
    const GroupNormSilu& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    if (plan.variant == Variant::kBlock || plan.variant == Variant::kChip)
        return launch_held(norm_columns_held<T>, args, plan, workspace, stream);
    return launch_stream(norm_columns_stream<T>, args, plan, workspace, stream);
}

}  // namespace

cudaError_t group_norm_silu_columns(
    const GroupNormSilu& args, const Plan& plan, void* workspace, cudaStream_t stream) {
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
