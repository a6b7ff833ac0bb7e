// Memory of a moment.
#pragma once

#include <cstdlib>
#include <utility>

namespace fastdiff {

// Memory for noise that nobody sees. Each thread keeps its last; a step within a step, as a signal's handler
// may take one, has its own.
class Scratch {
  public:
    explicit Scratch(size_t bytes) {
        if (bytes == 0) return;
        std::swap(bytes_, spare().bytes_), std::swap(memory_, spare().memory_);
        if (bytes_ >= bytes) return;
        std::free(memory_);
        bytes_ = (bytes + kLine - 1) / kLine * kLine;
        memory_ = std::aligned_alloc(kLine, bytes_);
    }
    ~Scratch() {
        if (!spare().memory_ && bytes_ <= kMost)
            std::swap(bytes_, spare().bytes_), std::swap(memory_, spare().memory_);
        std::free(memory_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* get() const { return memory_; }

  private:
    static constexpr size_t kLine = 64, kMost = 16 << 20;

    struct Spare {
        size_t bytes_ = 0;
        void* memory_ = nullptr;
        ~Spare() { std::free(memory_); }
    };
    static Spare& spare() {
        static thread_local Spare kept;
        return kept;
    }

    size_t bytes_ = 0;
    void* memory_ = nullptr;
};

}  // namespace fastdiff
