// Whether torch's threads may be used.
#include <pthread.h>

#include <atomic>

#include "tensors.h"

namespace fastdiff {

namespace {
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
}  // namespace

bool is_forked() { return forked.load(std::memory_order_relaxed); }

}  // namespace fastdiff
