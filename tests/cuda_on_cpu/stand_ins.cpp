// Stand-ins for what only a CUDA build of torch, or a GPU, has.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace emulation {
extern int64_t most_cooperative;  // of emulation.cpp
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}
EXPORT AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
    *guard = nullptr;
    return AOTI_TORCH_SUCCESS;
}
EXPORT AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
EXPORT AOTITorchError
torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
    static char failed[] = "the launch failed";
    *message = error == cudaSuccess ? nullptr : failed;
    return AOTI_TORCH_SUCCESS;
}
EXPORT void torch_c10_cuda_free_error_msg(char*) {}

// A small chip, so that small images need each of the variants that large ones need on a real one.
static int chip_sms = 4, chip_shared = 64 * 1024, chip_l2 = 1 << 20;

EXPORT void emulated_chip(int sms, int shared, int l2) {
    chip_sms = sms;
    chip_shared = shared;
    chip_l2 = l2;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    switch (which) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = 9;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 0;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = chip_sms;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = 2048;
            break;
        case cudaDevAttrL2CacheSize:
            *value = chip_l2;
            break;
        case cudaDevAttrCooperativeLaunch:
            *value = emulation::most_cooperative > 0;
            break;
        default:  // shared memory
            *value = chip_shared;
    }
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
