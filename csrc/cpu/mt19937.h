// The state of torch's CPU generator, as torch.Generator.get_state() gives it, and the words that follow from
// it.
#pragma once

#include <cmath>
#include <cstring>

#include "tensors.h"

namespace fastdiff {

// CPUGeneratorImplState of ATen/CPUGeneratorImpl.cpp.
struct GeneratorState {
    uint64_t seed;
    int32_t left;  // words left of this block, plus 1
    int32_t seeded;
    uint64_t next;
    uint64_t words[624];
    double normal_x, normal_y, normal_rho;
    int32_t normal_is_valid;  // normal_y is the other value of the last pair drawn in float64
    int32_t padding;
    float float_normal;  // of no kernel on the CPU
    bool float_normal_is_valid;
};
static_assert(sizeof(GeneratorState) == 5056);

// Words of mt19937 in order, untempered. Copies go their own ways.
class Words624 {
  public:
    explicit Words624(const GeneratorState& state) : used_(625 - state.left) {
        for (int i = 0; i < 624; ++i) words_[i] = static_cast<uint32_t>(state.words[i]);
    }

    void skip(int64_t count) {
        while (count > 624 - used_) {
            count -= 624 - used_;
            advance();
        }
        used_ += static_cast<int>(count);
    }

    // The next 16*blocks words, as normal values.
    void normal(int64_t blocks, float* out) {
        while (blocks > 0) {
            const int64_t whole = std::min<int64_t>((624 - used_) / 16, blocks);
            if (whole == 0) {
                straddling(out);
                blocks -= 1, out += 16;
                continue;
            }
            kernels_.normal_blocks(words_ + used_, whole, out);
            used_ += static_cast<int>(16 * whole);
            blocks -= whole, out += 16 * whole;
        }
    }

    uint32_t tempered() {
        if (used_ == 624) advance();
        uint32_t y = words_[used_++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        return y ^ (y >> 18);
    }

    void save(GeneratorState& state) const {
        state.left = 625 - used_;
        state.next = static_cast<uint64_t>(used_);
        for (int i = 0; i < 624; ++i) state.words[i] = words_[i];
    }

  private:
    void advance() {
        kernels_.mt19937_advance(words_);
        used_ = 0;
    }

    void straddling(float* out) {  // a block that begins in these words and ends in the next
        uint32_t block[16];
        const int rest = 624 - used_;
        std::memcpy(block, words_ + used_, rest * sizeof(uint32_t));
        advance();
        std::memcpy(block + rest, words_, (16 - rest) * sizeof(uint32_t));
        used_ = 16 - rest;
        kernels_.normal_blocks(block, 1, out);
    }

    const Kernels& kernels_ = kernels();
    alignas(64) uint32_t words_[624];
    int used_;
};

// What torch.randn draws one by one, for fewer than 16 values: at::normal_distribution<double>.
inline void draw_few(GeneratorState& state, Words624& words, int64_t count, float* out) {
    const auto uniform = [&] {
        const uint64_t high = words.tempered();
        return static_cast<double>(((high << 32) | words.tempered()) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
    };
    for (int64_t i = 0; i < count; ++i) {
        double value = state.normal_y;
        if (!state.normal_is_valid) {
            const double u1 = uniform(), u2 = uniform();
            const double radius = std::sqrt(-2.0 * std::log1p(-u2)),
                         angle = 2.0 * 3.14159265358979323846 * u1;
            state.normal_y = radius * std::sin(angle);
            value = radius * std::cos(angle);
        }
        state.normal_is_valid = !state.normal_is_valid;
        out[i] = static_cast<float>(value + 0.0);
    }
    if (!state.normal_is_valid) state.normal_y = 0.0;
}

}  // namespace fastdiff
