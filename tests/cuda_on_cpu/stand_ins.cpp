// Stand-ins for what only a CUDA build of torch, or a GPU, has.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

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
