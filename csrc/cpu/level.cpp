// Compiled once for each instruction set, with -DFASTDIFF_LEVEL=<name> and that level's flags. Nothing here
// may leave a symbol that another file could share (no standard library, all in the level's own namespace):
// the linker might keep the copy that this processor cannot run.
#include "counter.h"
#include "group_norm_silu.h"
#include "mixture.h"
#include "normal.h"
#include "q_sample.h"
#include "solver_step.h"

#define FASTDIFF_STRING_OF(x) #x
#define FASTDIFF_STRING(x) FASTDIFF_STRING_OF(x)

namespace fastdiff {
namespace FASTDIFF_LEVEL {

extern const Kernels table;
const Kernels table = {
    FASTDIFF_STRING(FASTDIFF_LEVEL),
    q_sample,
    solver_step,
    magnitudes,
    split,
    deviations,
    group_norm_silu,
    mt19937_advance,
    normal_blocks,
    counter_normal,
};

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
