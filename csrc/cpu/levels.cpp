// Which level runs: chosen once from what the processor has, or forced by FASTDIFF_ISA or fastdiff_set_isa.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fastdiff {

namespace generic {
extern const Kernels table;
}
#ifdef FASTDIFF_X86_LEVELS
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

const Kernels* find(const char* name) {  // null: unknown, or this processor lacks it
#ifdef FASTDIFF_X86_LEVELS
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl");
    const bool widest = std::strcmp(name, "") == 0;
    if (has_avx512 && (widest || std::strcmp(name, "avx512") == 0)) return &avx512::table;
    if (has_avx2 && (widest || std::strcmp(name, "avx2") == 0)) return &avx2::table;
#endif
    if (std::strcmp(name, "") == 0 || std::strcmp(name, "generic") == 0) return &generic::table;
    return nullptr;
}

const Kernels* initial() {
    const char* asked = std::getenv("FASTDIFF_ISA");
    const Kernels* found = find(asked ? asked : "");
    return found ? found : find("");
}

std::atomic<const Kernels*> current{initial()};

}  // namespace

const Kernels& kernels() { return *current.load(std::memory_order_relaxed); }

}  // namespace fastdiff

extern "C" {

__attribute__((visibility("default"))) const char* fastdiff_isa() { return fastdiff::kernels().name; }

// name: "generic", "avx2", "avx512", or "" for the widest. Returns 0, or 1 if this processor or build lacks
// it.
__attribute__((visibility("default"))) int fastdiff_set_isa(const char* name) {
    const fastdiff::Kernels* found = fastdiff::find(name);
    if (!found) return 1;
    fastdiff::current.store(found, std::memory_order_relaxed);
    return 0;
}
}
