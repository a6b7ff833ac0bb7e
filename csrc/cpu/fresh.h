// New tensors for results. Touching fresh memory page by page costs more than computing what goes there, so
// large ones are asked for in huge pages, which Linux by default gives only on request.
#pragma once

#include "tensors.h"

#ifdef __linux__
    #include <sys/mman.h>
#endif

namespace fastdiff {

inline Tensor with_huge_pages(Tensor t, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int64_t kLeast = 4 << 20;
    constexpr uintptr_t kPage = 4096;
    if (bytes >= kLeast) {
        const uintptr_t start = reinterpret_cast<uintptr_t>(t.data_ptr()),
                        first = (start + kPage - 1) & ~(kPage - 1);
        // Advice: where it is not taken, the pages are small.
        madvise(reinterpret_cast<void*>(first), (start + bytes - first) & ~(kPage - 1), MADV_HUGEPAGE);
    }
#else
    (void)bytes;
#endif
    return t;
}

// Whether this many bytes exceed a last-level cache, so that results had better not pass through it. What a
// virtual machine reports as its size may be the whole host's.
inline bool exceeds_caches(int64_t bytes) { return bytes > 32 << 20; }

inline int64_t width_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

inline Tensor fresh_like(const Tensor& x) {
    return with_huge_pages(torch::stable::empty_like(x), x.numel() * width_of(dtype_of(x)));
}

}  // namespace fastdiff
