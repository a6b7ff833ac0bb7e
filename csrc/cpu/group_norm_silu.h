// group_norm_silu and its backward at one level.
#pragma once

#include "group_norm_silu_last.h"
#include "group_norm_silu_last_grad.h"
#include "group_norm_silu_planar.h"
#include "group_norm_silu_planar_grad.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

constexpr GroupNormKernels group_norm_silu = {
    planar::phases, channels_last::phases, planar_grad::phases, channels_last_grad::phases, widen_all,
};

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
