// Which variant a shape gets, and its geometry: arithmetic alone, so that it can be tested anywhere.
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numeric>

#include "group_norm_layout.h"
#include "group_norm_silu.h"
#include "group_norm_silu_table.h"

namespace fastdiff::cuda {
namespace {

// For the rule, an H100's, in bytes a microsecond: what memory gives all SMs and what one SM can take, with
// some 2 us for a barrier over the grid. Not measured with these kernels yet: a line of the table overrules
// them.
constexpr double kChipBandwidth = 3.0e6, kSmBandwidth = 6.0e4, kBarrier = 2.0;
constexpr int64_t kLaunchedSlab = 512;  // pieces of a block in kLaunches: four rounds of its warps
constexpr int64_t kMostSlab = 1024;     // pieces of a block in the gradient, whose sums it keeps
constexpr int64_t kMostSlots = 32;      // a warp's slots: one lane knows each
constexpr int64_t kReserved = 1024;     // bytes of shared memory a block uses unasked

struct Shape {
    const Norm& norm;
    const Chip& chip;
    bool backward;
    int lanes;
    int64_t vectors;  // 16-byte accesses an element's place needs held: x, and grad in the gradient

    int64_t per_group() const { return norm.channels / norm.groups; }
    int64_t bytes() const {
        return norm.batch * norm.channels * norm.pixels * bytes_of(norm.element) * vectors;
    }
    // A block's shared memory if one runs on an SM.
    int64_t room() const { return std::min(chip.shared_block, chip.shared_sm - kReserved); }
};

int64_t resident(const Chip& chip) { return chip.sms; }  // blocks: the kernels' registers allow one an SM

// Shared memory of a block that holds nothing in it.
int64_t fixed_shared(const Shape& shape, const Plan& plan) {
    if (plan.path == Path::kColumns)
        return columns_shared(shape.lanes, plan.width, plan.groups, shape.backward ? 3 : 2);
    return kScratchBytes + (shape.backward ? plan.slab * kSumsBytes : 0);
}

int64_t slots_in_registers(const Shape& shape, const Plan& plan) {
    if (!shape.backward) return kSlots;
    return plan.path == Path::kColumns ? kColumnPairs : kPairs;
}

// Slots a thread needs to hold a slab.
int64_t slots_of(const Plan& plan, int lanes, int64_t slab) {
    if (plan.path == Path::kColumns) return ceil_div(slab, kNormThreads / (plan.width / lanes));
    return ceil_div(slab, kNormWarps);
}

int64_t shared_for(const Shape& shape, const Plan& plan, int64_t slots) {
    const int64_t spare = std::max<int64_t>(slots - slots_in_registers(shape, plan), 0);
    return fixed_shared(shape, plan) + spare * shape.vectors * kNormThreads * kVectorBytes;
}

// A range of whole groups and whole packs whose columns fit the threads, and its sums a block's shared
// memory: the widest, so that whole lines of memory are read; 0 where there is none.
int64_t range_of(const Shape& shape) {
    const int64_t least = std::lcm(shape.per_group(), static_cast<int64_t>(shape.lanes));
    const int64_t most = static_cast<int64_t>(kNormThreads) / 2 * shape.lanes;
    int64_t best = 0;
    for (int64_t width = least; width <= std::min(shape.norm.channels, most); width += least) {
        const int64_t shared =
            columns_shared(shape.lanes, width, width / shape.per_group(), shape.backward ? 3 : 2);
        if (shape.norm.channels % width == 0 && shared <= shape.room()) best = width;
    }
    return best;
}

int64_t unit_count(const Shape& shape, const Plan& plan) {  // pieces or pixels of a team
    return plan.path == Path::kColumns ? shape.norm.pixels : shape.per_group() * plan.pieces;
}

void cut(const Shape& shape, Plan& plan, int64_t slabs) {
    plan.slab = ceil_div(unit_count(shape, plan), std::max<int64_t>(slabs, 1));
    plan.slabs = ceil_div(unit_count(shape, plan), plan.slab);
}

// Whether a slab of each block fits on the chip; sets what the launch needs.
bool hold(const Shape& shape, Plan& plan) {
    const int64_t slots = slots_of(plan, shape.lanes, plan.slab);
    if (plan.path == Path::kScalars || slots > kMostSlots) return false;
    if (plan.path == Path::kRows && shape.backward && plan.slab > kMostSlab) return false;
    plan.held = static_cast<int>(slots);
    plan.shared = shared_for(shape, plan, slots);
    plan.per_phase = plan.teams;
    plan.phases = 1;
    return plan.shared <= shape.room();
}

constexpr int64_t kNarrowest = 64;  // bytes of a pixel: two sectors of memory

void set_width(const Shape& shape, Plan& plan, int64_t width) {
    plan.width = width;
    plan.groups = width / shape.per_group();
    plan.teams = shape.norm.batch * (shape.norm.channels / width);
}

int64_t team_bytes(const Shape& shape, const Plan& plan) {
    return shape.bytes() / std::max<int64_t>(plan.teams, 1);
}

// Whether so many phases, of one team each, leave a quarter of L2 for what is written.
bool phases_fit(const Shape& shape, const Plan& plan, int phases) {
    return phases * team_bytes(shape, plan) <= shape.chip.l2 / 4 * 3;
}

// The widest range of channels that `fits`, else the narrowest that still reads whole sectors.
template <typename Fits>
void narrow(const Shape& shape, Plan& plan, Fits fits) {
    if (plan.path != Path::kColumns) return;
    const int64_t least = std::lcm(shape.per_group(), static_cast<int64_t>(shape.lanes));
    for (int64_t width = plan.width; width >= least && !fits(plan); width -= least)
        if (shape.norm.channels % width == 0 && width * bytes_of(shape.norm.element) >= kNarrowest)
            set_width(shape, plan, width);
}

bool as_block(const Shape& shape, Plan& plan) {
    plan.variant = Variant::kBlock;
    narrow(shape, plan, [](const Plan&) { return false; });  // as many blocks as there can be
    cut(shape, plan, 1);
    return hold(shape, plan);
}

bool as_chip(const Shape& shape, Plan& plan) {
    plan.variant = Variant::kChip;
    if (!shape.chip.cooperative || plan.teams > resident(shape.chip)) return false;
    cut(shape, plan, resident(shape.chip) / plan.teams);
    return hold(shape, plan);
}

// As many teams at a time as leave room in L2 for the next phase too; where a team fits and the next does
// not, one after the other.
bool as_phases(const Shape& shape, Plan& plan) {
    plan.variant = Variant::kPhases;
    if (!shape.chip.cooperative) return false;
    narrow(shape, plan, [&](const Plan& narrowed) { return phases_fit(shape, narrowed, 2); });
    if (!phases_fit(shape, plan, 1)) return false;
    plan.ahead = phases_fit(shape, plan, 2);
    const int64_t team = team_bytes(shape, plan);
    plan.per_phase = std::clamp<int64_t>(shape.chip.l2 / 4 / std::max<int64_t>(team, 1), 1, plan.teams);
    plan.per_phase = std::min(plan.per_phase, resident(shape.chip));
    cut(shape, plan, resident(shape.chip) / plan.per_phase);
    if (plan.path != Path::kColumns && shape.backward && plan.slab > kMostSlab) return false;
    plan.phases = ceil_div(plan.teams, plan.per_phase);
    plan.shared = fixed_shared(shape, plan);
    return plan.shared <= shape.room();
}

bool as_launches(const Shape& shape, Plan& plan) {
    plan.variant = Variant::kLaunches;
    int64_t slab = kLaunchedSlab;
    if (plan.path == Path::kColumns)  // about as many bytes
        slab = std::max<int64_t>(kLaunchedSlab * 32 * shape.lanes / plan.width, 1);
    cut(shape, plan, ceil_div(unit_count(shape, plan), slab));
    plan.per_phase = plan.teams;
    plan.phases = 1;
    plan.shared = fixed_shared(shape, plan);
    return true;
}

bool as(Variant variant, const Shape& shape, Plan& plan) {
    switch (variant) {
        case Variant::kBlock:
            return as_block(shape, plan);
        case Variant::kChip:
            return as_chip(shape, plan);
        case Variant::kPhases:
            return as_phases(shape, plan);
        default:
            return as_launches(shape, plan);
    }
}

// Microseconds by bandwidth alone: x in and y out.
double estimate(const Shape& shape, const Plan& plan) {
    const double moved = 2.0 * shape.bytes() / std::max<int64_t>(plan.teams * plan.slabs, 1);
    const double rounds = std::ceil(static_cast<double>(plan.teams * plan.slabs) / resident(shape.chip));
    return std::max(2.0 * shape.bytes() / kChipBandwidth, rounds * moved / kSmBandwidth) +
           (plan.variant == Variant::kBlock ? 0.0 : kBarrier);
}

// One block a group where that is possible and not slower, by the estimate, than the whole chip with a
// barrier.
Plan rule(const Shape& shape, const Plan& blank) {
    Plan block = blank, chip = blank;
    const bool may_block = as_block(shape, block), may_chip = as_chip(shape, chip);
    if (may_block && (!may_chip || estimate(shape, block) <= estimate(shape, chip))) return block;
    if (may_chip) return chip;
    for (const Variant variant : {Variant::kPhases, Variant::kLaunches}) {
        Plan plan = blank;
        if (as(variant, shape, plan)) return plan;
    }
    return blank;
}

Variant measured(const Shape& shape) {
    const auto fits = [](int64_t wanted, int64_t is) { return wanted == 0 || wanted == is; };
    for (const Measured& line : kMeasured)
        if (line.variant != Variant::kAuto && fits(line.architecture, shape.chip.architecture) &&
            line.element == shape.norm.element && line.channels_last == shape.norm.channels_last &&
            line.backward == shape.backward && fits(line.batch, shape.norm.batch) &&
            fits(line.channels, shape.norm.channels) && fits(line.groups, shape.norm.groups) &&
            fits(line.pixels, shape.norm.pixels))
            return line.variant;
    return Variant::kAuto;
}

// The path, and what does not depend on the variant.
Plan blank_plan(const Shape& shape, const Alignment& where) {
    const Norm& norm = shape.norm;
    Plan plan = {};
    const int64_t width = range_of(shape);
    if (norm.channels_last)
        plan.path =
            where.aligned && norm.channels % shape.lanes == 0 && width ? Path::kColumns : Path::kScalars;
    else
        plan.path = where.same_phase ? Path::kRows : Path::kScalars;
    plan.phase = where.phase;
    plan.edges = plan.path == Path::kRows && (where.phase != 0 || norm.pixels % shape.lanes != 0);
    const int64_t lanes = plan.path == Path::kRows ? shape.lanes : 1;
    plan.pieces = std::max<int64_t>(ceil_div(norm.pixels / lanes, 32), 1);
    plan.width = plan.path == Path::kColumns ? width : shape.per_group();
    plan.groups = plan.width / shape.per_group();
    plan.teams = norm.batch * (norm.channels / plan.width);
    plan.phases = plan.slabs = 1;
    return plan;
}

}  // namespace

Plan plan_group_norm(
    const Norm& norm, const Alignment& where, const Chip& chip, bool backward, Variant wanted) {
    const Shape shape = {norm, chip, backward, kVectorBytes / bytes_of(norm.element), backward ? 2 : 1};
    const Plan blank = blank_plan(shape, where);
    if (wanted == Variant::kAuto) wanted = measured(shape);
    Plan plan = blank;
    if (wanted == Variant::kAuto || !as(wanted, shape, plan)) plan = rule(shape, blank);
    plan.channels = plan.path == Path::kColumns ? plan.width : rows_touched(norm, plan);
    plan.workspace = workspace_bytes(plan, backward);
    return plan;
}

namespace {

// How the arrays of one call start, null ones left out.
Alignment alignment(std::initializer_list<const void*> arrays, Element element) {
    const uint64_t first = reinterpret_cast<uint64_t>(*arrays.begin()) % kVectorBytes;
    Alignment where = {true, true, static_cast<int>(first / bytes_of(element))};
    for (const void* array : arrays) {
        const uint64_t start = reinterpret_cast<uint64_t>(array) % kVectorBytes;
        where.same_phase &= array == nullptr || start == first;
    }
    where.aligned = where.same_phase && first == 0;
    return where;
}

bool is_empty(const Norm& norm) { return norm.batch * norm.channels * norm.pixels == 0; }

}  // namespace

Alignment alignment_of(const GroupNormSilu& args) {
    return alignment({args.x, args.y, args.residual, args.summed}, args.norm.element);
}
Alignment alignment_of(const GroupNormSiluBackward& args) {
    return alignment({args.x, args.dx, args.grad}, args.norm.element);
}

cudaError_t group_norm_silu(
    const GroupNormSilu& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    if (is_empty(args.norm)) return cudaSuccess;
    return plan.path == Path::kColumns ? group_norm_silu_columns(args, plan, workspace, stream)
                                       : group_norm_silu_rows(args, plan, workspace, stream);
}

cudaError_t group_norm_silu_backward(
    const GroupNormSiluBackward& args, const Plan& plan, void* workspace, cudaStream_t stream) {
    if (is_empty(args.norm)) return cudaSuccess;
    return plan.path == Path::kColumns ? group_norm_silu_backward_columns(args, plan, workspace, stream)
                                       : group_norm_silu_backward_rows(args, plan, workspace, stream);
}

}  // namespace fastdiff::cuda
