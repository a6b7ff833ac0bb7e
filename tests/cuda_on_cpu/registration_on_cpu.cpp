// One of csrc/cuda's registration files as it stands, but onto another key: CPU, since CPU tensors are all
// there is, or one that no tensor has.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define CUDA REGISTRATION_KEY
#include REGISTRATION
