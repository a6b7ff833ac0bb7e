// fastdiff._host: what the build knows of itself and of the processor, and a short way to a run's steps.
// Nothing here is needed to run an op.
#define PYBIND11_NO_ASSERT_GIL_HELD_INCREF_DECREF  // which takes as long as the rest of a count
#include <pybind11/pybind11.h>

#include "draw.h"
#include "follow.h"

namespace py = pybind11;

#define FASTDIFF_STRING_OF(x) #x
#define FASTDIFF_STRING(x) FASTDIFF_STRING_OF(x)

namespace {

// The instruction sets that the CPU kernels can make use of, and whether this processor has them.
py::dict cpu_features() {
    py::dict features;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    features["avx2"] = static_cast<bool>(__builtin_cpu_supports("avx2"));
    features["fma"] = static_cast<bool>(__builtin_cpu_supports("fma"));
    features["f16c"] = static_cast<bool>(__builtin_cpu_supports("f16c"));
    features["avx512f"] = static_cast<bool>(__builtin_cpu_supports("avx512f"));
    features["avx512bw"] = static_cast<bool>(__builtin_cpu_supports("avx512bw"));
    features["avx512dq"] = static_cast<bool>(__builtin_cpu_supports("avx512dq"));
    features["avx512vl"] = static_cast<bool>(__builtin_cpu_supports("avx512vl"));
#endif
    return features;
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = FASTDIFF_COMPILER " " __VERSION__;
    info["cplusplus"] = static_cast<long>(__cplusplus);
    info["pybind11"] = FASTDIFF_STRING(PYBIND11_VERSION_MAJOR) "." FASTDIFF_STRING(PYBIND11_VERSION_MINOR);
    return info;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
    module.doc() = "Build information, CPU features, and a run's steps without PyTorch's dispatcher.";
    module.attr("STEP") = FASTDIFF_STEP_NAME;
    module.def(
        "stepper", &fastdiff::make_stepper, "A function that takes steps; see fastdiff/ops/stepper.py.");
    module.def(
        "follower", &fastdiff::make_follower,
        "A loop's steps, told and taken; see fastdiff/diffusers/short.py.");
    module.def("filler", &fastdiff::make_filler, "Draws from a generator; see fastdiff/ops/_drawing.py.");
    module.def("cpu_features", &cpu_features, "Instruction set -> whether this processor has it.");
    module.def("build_info", &build_info, "The compiler and versions this install was built with.");
}
