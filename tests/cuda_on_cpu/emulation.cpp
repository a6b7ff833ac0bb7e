// The scheduler behind emulation.h: fibers that switch by setjmp and longjmp, which costs nanoseconds.
#undef _FORTIFY_SOURCE  // its longjmp refuses to jump to another stack
#include "emulation.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

namespace emulation {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int64_t kMostShared = 227 * 1024;  // of a block on sm_90
constexpr int kCanary = 64;
constexpr int kMostSpins = 20000;  // rounds in which threads only spin, before they are given up

// Threads that wait for each other; `generation` counts how often all have come.
struct Meeting {
    unsigned arrived = 0, alive = 0, generation = 0;

    void release_if_complete() {
        if (alive != 0 && arrived == alive) {
            arrived = 0;
            ++generation;
        }
    }
};

struct Warp {
    uint64_t values[2][warpSize] = {};  // of an exchange and the next: no thread can be further ahead
    unsigned mask = 0, arrived = 0, generation = 0, exited = 0;
};

struct Block {
    uint3 index = {};
    Meeting barrier;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
};

struct Fiber {
    ucontext_t start = {};
    jmp_buf at = {};
    bool started = false, done = false, spinning = false;
    const unsigned* watched = nullptr;  // waits until *watched != seen
    unsigned seen = 0;
    uint3 index = {};
    Block* block = nullptr;
    const std::function<void()>* kernel = nullptr;
};

std::mutex one_launch;
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* current = nullptr;
jmp_buf scheduler;
Meeting grid;
int order = 0;  // 0 forward, 1 backward, else the seed of a shuffle each round
std::mt19937 shuffler;

void suspend() {
    if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

void wait_for(const unsigned* watched, unsigned seen) {
    current->watched = watched;
    current->seen = seen;
    suspend();
    current->watched = nullptr;
}

void meet(Meeting& meeting) {
    const unsigned seen = meeting.generation;
    ++meeting.arrived;
    meeting.release_if_complete();
    if (meeting.generation == seen) wait_for(&meeting.generation, seen);
}

void leave(Meeting& meeting) {
    --meeting.alive;
    meeting.release_if_complete();
}

void live() {
    for (;;) {
        (*current->kernel)();
        current->done = true;
        current->block->warps[current->index.x / warpSize].exited |= 1u << current->index.x % warpSize;
        leave(current->block->barrier);
        leave(grid);
        suspend();
    }
}

std::unique_ptr<Fiber> make_fiber() {
    auto fiber = std::make_unique<Fiber>();
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fiber->start.uc_stack.ss_size = kStack;
    makecontext(&fiber->start, live, 0);
    return fiber;
}

void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    blockIdx = fiber.block->index;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

template <typename T>
void arrange(std::vector<T>& all) {
    if (order == 1) std::reverse(all.begin(), all.end());
    if (order > 1) std::shuffle(all.begin(), all.end(), shuffler);
}

// False if threads wait for what will not come.
bool run_until_done(std::vector<Fiber*> alive) {
    if (order == 1) arrange(alive);
    for (int spins = 0; !alive.empty();) {
        if (order > 1) arrange(alive);
        bool ran = false, moved = false;
        for (Fiber* fiber : alive) {
            if (fiber->watched && *fiber->watched == fiber->seen) continue;
            fiber->spinning = false;
            resume(*fiber);
            ran = true;
            moved |= !fiber->spinning;
        }
        spins = moved ? 0 : spins + 1;
        if (!ran || spins > kMostSpins) return false;
        alive.erase(
            std::remove_if(alive.begin(), alive.end(), [](Fiber* f) { return f->done; }), alive.end());
    }
    return true;
}

void prepare(Block& block, int64_t index, const Shape& shape) {
    block.index = {static_cast<unsigned>(index), 0, 0};
    block.barrier.alive = static_cast<unsigned>(shape.block);
    block.warps.resize((shape.block + warpSize - 1) / warpSize);
    block.shared.assign(shape.shared + kCanary, 0xff);
}

bool intact(const Block& block) {
    return std::all_of(
        block.shared.end() - kCanary, block.shared.end(), [](unsigned char c) { return c == 0xff; });
}

cudaError_t run_together(
    const Shape& shape, const int64_t* indices, int64_t count, const std::function<void()>& kernel) {
    std::vector<Block> blocks(count);
    while (fibers.size() < static_cast<size_t>(count * shape.block)) fibers.push_back(make_fiber());
    std::vector<Fiber*> alive;
    grid = Meeting();
    grid.alive = static_cast<unsigned>(count * shape.block);
    for (int64_t b = 0; b < count; ++b) {
        prepare(blocks[b], indices[b], shape);
        for (int t = 0; t < shape.block; ++t) {
            Fiber& fiber = *fibers[b * shape.block + t];
            fiber.done = false;
            fiber.watched = nullptr;
            fiber.index = {static_cast<unsigned>(t), 0, 0};
            fiber.block = &blocks[b];
            fiber.kernel = &kernel;
            alive.push_back(&fiber);
        }
    }
    if (!run_until_done(alive)) {
        for (auto& fiber : fibers) fiber.release();  // their stacks are in the middle of a kernel
        fibers.clear();
        return cudaErrorLaunchTimeout;
    }
    return std::all_of(blocks.begin(), blocks.end(), intact) ? cudaSuccess : cudaErrorIllegalAddress;
}

}  // namespace

int64_t most_cooperative = INT64_MAX;

cudaError_t run(const Shape& shape, const std::function<void()>& kernel) {
    if (shape.grid < 1 || shape.grid > INT32_MAX || shape.block < 1 || shape.block > 1024 ||
        shape.shared < 0 || shape.shared > kMostShared)
        return cudaErrorInvalidConfiguration;
    if (shape.cooperative && shape.grid > most_cooperative)
        return most_cooperative == 0 ? cudaErrorNotSupported : cudaErrorCooperativeLaunchTooLarge;
    const std::lock_guard<std::mutex> lock(one_launch);
    gridDim = dim3(static_cast<unsigned>(shape.grid));
    blockDim = dim3(static_cast<unsigned>(shape.block));
    shuffler.seed(order);
    std::vector<int64_t> blocks(shape.grid);
    std::iota(blocks.begin(), blocks.end(), 0);
    arrange(blocks);
    const int64_t together = shape.cooperative ? shape.grid : 1;
    for (int64_t first = 0; first < shape.grid; first += together) {
        const cudaError_t error = run_together(shape, blocks.data() + first, together, kernel);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

void sync_block() { meet(current->block->barrier); }
void sync_grid() { meet(grid); }
void* dynamic_shared() { return current->block->shared.data(); }

void pass() {
    current->spinning = true;
    suspend();
}

const uint64_t* exchange(unsigned mask, uint64_t value) {
    Warp& warp = current->block->warps[current->index.x / warpSize];
    const int lane = static_cast<int>(current->index.x % warpSize);
    const unsigned seen = warp.generation, bit = 1u << lane;
    // a lane outside its own mask, another mask than the others', or one that has left: no thread goes on
    if (!(mask & bit) || (warp.arrived && warp.mask != mask) || (warp.exited & mask)) wait_for(&seen, seen);
    uint64_t* values = warp.values[seen % 2];
    warp.mask = mask;
    values[lane] = value;
    warp.arrived |= bit;
    if (warp.arrived == mask) {
        warp.arrived = 0;
        ++warp.generation;
    } else {
        wait_for(&warp.generation, seen);
    }
    return values;
}

}  // namespace emulation

// 0: threads and blocks from the first to the last; 1: from the last to the first; more: the seed of a
// shuffle.
extern "C" __attribute__((visibility("default"))) void emulated_order(int order) { emulation::order = order; }

// Cooperative launches of more blocks are refused, as on a shared GPU; with 0 the device says that it has
// none.
extern "C" __attribute__((visibility("default"))) void emulated_cooperative(int64_t most) {
    emulation::most_cooperative = most;
}
