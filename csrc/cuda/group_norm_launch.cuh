// Launches of the kernels that hold their input and of those that read it twice.
#pragma once

#include "group_norm_silu.cuh"

namespace fastdiff::cuda {

template <typename Args>
cudaError_t launch_held(
    void (*kernel)(Args, Plan, unsigned char*), const Args& args, const Plan& plan, void* workspace,
    cudaStream_t stream) {
    unsigned char* parts = static_cast<unsigned char*>(workspace) + counter_bytes(plan);
    const int64_t grid = plan.teams * plan.slabs;
    if (plan.variant == Variant::kBlock)
        return FASTDIFF_LAUNCH_SHARED(kernel, grid, kNormThreads, plan.shared, stream, args, plan, parts);
    return FASTDIFF_LAUNCH_COOPERATIVE(kernel, grid, kNormThreads, plan.shared, stream, args, plan, parts);
}

template <typename Args>
cudaError_t launch_stream(
    void (*kernel)(Args, Plan, unsigned*, unsigned char*, Step), const Args& args, const Plan& plan,
    void* workspace, cudaStream_t stream) {
    unsigned* counters = static_cast<unsigned*>(workspace);
    unsigned char* parts = static_cast<unsigned char*>(workspace) + counter_bytes(plan);
    const int64_t grid = plan.per_phase * plan.slabs;
    if (plan.variant == Variant::kPhases)
        return FASTDIFF_LAUNCH_COOPERATIVE(
            kernel, grid, kNormThreads, plan.shared, stream, args, plan, counters, parts, Step::kBoth);
    for (const Step step : {Step::kFirst, Step::kSecond}) {
        const cudaError_t error = FASTDIFF_LAUNCH_SHARED(
            kernel, grid, kNormThreads, plan.shared, stream, args, plan, counters, parts, step);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

}  // namespace fastdiff::cuda
