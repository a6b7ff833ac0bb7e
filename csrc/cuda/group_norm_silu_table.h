// Choices of group_norm_silu's variant found by measurement, which go before the rule of
// group_norm_silu_plan.cpp. Empty until an H100 has measured them.
//
// One line a shape, such as
//     {90, Element::kBfloat16, false, false, 2, 320, 32, 4096, Variant::kBlock},
// with the architecture it was measured on, x's element, whether channels-last, whether the gradient, batch,
// channels, groups, pixels (0 in any of the last four: whatever it is), and the variant that won. The first
// line that fits counts. A variant that a GPU cannot run for that shape gives way to the rule, so a line can
// never make a call fail.
#pragma once

#include "group_norm_silu.h"

namespace fastdiff::cuda {

struct Measured {
    int architecture;  // 90, or 0 for any
    Element element;
    bool channels_last, backward;
    int64_t batch, channels, groups, pixels;
    Variant variant;
};

// Ends with kAuto.
constexpr Measured kMeasured[] = {{0, Element::kFloat32, false, false, 0, 0, 0, 0, Variant::kAuto}};

}  // namespace fastdiff::cuda
