// How fastdiff._host calls the CPU library's step without PyTorch in between. Plain C; whoever changes these
// structs changes the number in the function's name too, so that builds of different age never meet.
#pragma once

#include <cstdint>

#define FASTDIFF_STEP fastdiff_step_4
#define FASTDIFF_STEP_NAME "fastdiff_step_4"

extern "C" {

// What stays the same over a run: memory of dense tensors laid out alike, float32 but for input; null where
// there is none. Types of floats: 0 float32, 1 float16, 2 bfloat16.
struct FastdiffRun {
    const double* table;  // [rows, 22]
    int64_t rows, numel, images;
    float* x;
    float* anchor;
    float* history;  // [slots, numel]
    int64_t slots;
    void* input;  // [copies, numel]
    int64_t input_type, copies;
    const float* mask;
    const float* known;
    const float* known_noise;
    const int64_t* seeds;  // [images]
};

// What a step brings along.
struct FastdiffRow {
    int64_t row;
    const void* output;
    const void* uncond;
    int64_t type;  // of both
    const void* noise;
    int64_t noise_type;
    const float* bound;  // [images]
    const float* gain;   // [images]
    float* x;            // where not null, written instead of the run's x, with these instead of its others
    const float* source;
    void* input;
    float* history;
    const float* anchor;
};

// Takes one step. Returns null, or what keeps it from being taken; then nothing was written.
typedef const char* (*FastdiffStepFunction)(const FastdiffRun*, const FastdiffRow*);
}
