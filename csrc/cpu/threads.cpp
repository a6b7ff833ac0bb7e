// Whether torch's threads may be used.
#include <pthread.h>

#include <atomic>

#include "tensors.h"

namespace fastdiff {

namespace {
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
}  // namespace

// Called by whoever loads the library in a process that was forked before: the handler above came too late.
extern "C" __attribute__((visibility("default"))) void fastdiff_forked() { forked = true; }

bool is_forked() { return forked.load(std::memory_order_relaxed); }

}  // namespace fastdiff
