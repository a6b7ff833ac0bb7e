// group_norm_silu and its backward on the CPU: tensors checked and turned into pointers, scratch memory, and
// the threads.
#include <memory>
#include <new>

#include "fresh.h"
#include "tensors.h"

namespace fastdiff {
namespace {

constexpr int64_t kAligned = 64;
constexpr int64_t kGrain = 16384;  // elements that are worth a thread
constexpr int64_t kKept = 98304;   // floats that a second-level cache has room for

// Memory of the op's own, from which pieces are taken once their sizes are known.
class Scratch {
  public:
    template <class T>
    void want(T*& pointer, int64_t count) {
        wishes_.push_back({reinterpret_cast<char**>(&pointer), size_});
        size_ += (count * static_cast<int64_t>(sizeof(T)) + kAligned - 1) / kAligned * kAligned;
    }
    void take() {
        memory_.reset(static_cast<char*>(::operator new(size_, std::align_val_t(kAligned))));
        for (const Wish& wish : wishes_) *wish.pointer = memory_.get() + wish.offset;
    }

  private:
    struct Wish {
        char** pointer;
        int64_t offset;
    };
    struct Free {
        void operator()(char* p) const { ::operator delete(p, std::align_val_t(kAligned)); }
    };
    std::vector<Wish> wishes_;
    int64_t size_ = 0;
    std::unique_ptr<char, Free> memory_;
};

Tensor empty(ScalarType type, const std::vector<int64_t>& sizes) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        sizes.size(), sizes.data(), strides.data(), static_cast<int32_t>(type), aoti_torch_device_type_cpu(),
        0, &handle));
    return Tensor(handle);
}

// The small vectors as float32: those in x's dtype are widened into memory of their own.
class SmallVectors {
  public:
    SmallVectors(
        const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& add, const Maybe& scale,
        const Maybe& shift)
        : x_(x) {
        small = {at(weight, 1), at(bias, 1), at(add, 2), at(scale, 2), at(shift, 2)};
    }
    Small small;

  private:
    const float* at(const Maybe& t, int64_t dims) {
        if (!t.has_value()) return nullptr;
        const bool shaped =
            t->dim() == dims && t->size(dims - 1) == x_.size(1) && (dims == 1 || t->size(0) == x_.size(0));
        require(
            t->is_cpu() && shaped && t->is_contiguous() &&
                (t->scalar_type() == ScalarType::Float || t->scalar_type() == x_.scalar_type()),
            "weight and bias must be [C], add, scale and shift [B, C], contiguous, in float32 or x's dtype");
        if (t->scalar_type() == ScalarType::Float) return static_cast<const float*>(t->data_ptr());
        widened_.emplace_back(new float[t->numel()]);
        kernels().group_norm_silu.widen(t->data_ptr(), dtype_of(*t), t->numel(), widened_.back().get());
        return widened_.back().get();
    }
    const Tensor& x_;
    std::vector<std::unique_ptr<float[]>> widened_;
};

Activation activation_of(int64_t code) {
    require(code >= 0 && code <= 2, "activation must be 0 (none), 1 (silu) or 2 (gelu)");
    return static_cast<Activation>(code);
}

Sizes sizes_of(const Tensor& x, int64_t groups) {
    require(
        x.dim() >= 2 && groups > 0 && x.size(1) % groups == 0,
        "x must be [B, C, ...], C divisible by num_groups");
    Sizes s = {};
    s.batch = x.size(0), s.channels = x.size(1), s.groups = groups;
    s.pixels = x.numel() == 0 ? 0 : x.numel() / (s.batch * s.channels);
    s.padded = (s.channels + 31) / 32 * 32;
    return s;
}

// Whether the pixels of a channel lie together; else the channels of a pixel do. The order of the pixels does
// not matter.
bool is_planar(const Tensor& x, const Sizes& s) {
    const bool planar = s.channels == 1 || x.stride(1) == s.pixels;
    require(
        x.is_cpu() && is_dense(x) && (planar || x.stride(1) == 1 || x.numel() == 0),
        "x must be contiguous or channels-last");
    return planar && s.pixels > 1;
}

// Parts of about `elements` of a sample: whole times the pixels that a kernel sums up at once.
void cut_samples(Sizes& s, int64_t elements) {
    const int64_t pixels = std::min<int64_t>(std::max<int64_t>(elements / s.channels, 8), 512);
    s.part = pixels / 8 * 8;
    s.parts = (s.pixels + s.part - 1) / s.part;
}

// Calls f(args) with memory of the thread's own.
template <class F>
void with_room(const GroupNorm& args, const F& f) {
    f(args);
}
template <class F>
void with_room(const GroupNormGrad& args, const F& f) {
    if (!args.kept_size) return f(args);
    GroupNormGrad own = args;
    Scratch scratch;
    scratch.want(own.kept, args.kept_size);
    scratch.take();
    f(own);
}

// Memory for all items.
void make_room(GroupNorm&, int64_t, Scratch&) {}
void make_room(GroupNormGrad& args, int64_t items, Scratch& scratch) {
    args.kept_step = args.kept_size;
    scratch.want(args.kept, args.kept_size * items);
    scratch.take();
}

// Runs the phases item by item where the items share out well among the threads, else each on all threads.
template <class Args, class Settled>
void run(const Phases<Args>& phases, Args& args, int64_t items, const Settled& settled) {
    const Sizes& s = args.sizes;
    const int64_t parts = s.parts, elements = s.batch * s.channels * s.pixels;
    const int64_t threads = torch::stable::get_num_threads();
    if (parts == 1 || items % threads == 0 || items >= 8 * threads)
        return run_parallel(
            items, 1, std::max<int64_t>(kGrain / (elements / items), 1), [&](int64_t begin, int64_t end) {
                with_room(args, [&](const Args& own) { phases.run(own, begin, end); });
            });
    Scratch scratch;
    make_room(args, items, scratch);
    const int64_t units = items * parts,
                  grain = std::max<int64_t>(kGrain / std::max<int64_t>(elements / units, 1), 1);
    const Args after = settled(args);
    phases.start(args, 0, items);
    run_parallel(units, 1, grain, [&](int64_t begin, int64_t end) { phases.sum(args, begin, end); });
    if (!phases.finish(after, 0, items, false)) {
        run_parallel(units, 1, grain, [&](int64_t begin, int64_t end) { phases.sum(after, begin, end); });
        phases.finish(after, 0, items, true);
    }
    run_parallel(units, 1, grain, [&](int64_t begin, int64_t end) { phases.apply(after, begin, end); });
}

void run_forward(GroupNorm& args, bool planar) {
    Sizes& s = args.sizes;
    Scratch scratch;
    if (planar) {
        const int64_t size = s.per_group() * s.pixels;
        s.part = std::min<int64_t>(size, 8192);
        s.parts = (size + s.part - 1) / s.part;
        scratch.want(args.sums, s.items() * s.parts * 2);
    } else {
        cut_samples(s, 65536);
        scratch.want(args.columns, s.batch * s.parts * 2 * s.padded);
        scratch.want(args.points, s.batch * s.padded);
        scratch.want(args.affine, s.batch * 5 * s.padded);
        scratch.want(args.sums, s.batch * 2 * s.padded);
    }
    scratch.want(args.statistics, s.items());
    scratch.want(args.guess, s.items());
    if (!args.mean) scratch.want(args.mean, s.items()), scratch.want(args.rstd, s.items());
    scratch.take();
    const GroupNormKernels& k = kernels().group_norm_silu;
    run(planar ? k.planar : k.channels_last, args, planar ? s.items() : s.batch, [](GroupNorm a) {
        if (a.residual) a.x = a.summed, a.residual = nullptr;
        return a;
    });
}

void run_backward(GroupNormGrad& args, bool planar) {
    Sizes& s = args.sizes;
    const int64_t kept = planar ? s.per_group() * ((s.pixels + 31) / 32 * 32) : s.pixels * s.padded;
    args.kept_size = args.dtype != Dtype::f32 && kept <= kKept ? kept : 0;
    Scratch scratch;
    if (planar) {
        s.part = std::min<int64_t>(s.pixels, 1024);  // as many as float32 sums up well
        s.parts = s.per_group() * ((s.pixels + s.part - 1) / s.part);
        scratch.want(args.sums, s.items() * s.parts * 4);
    } else {
        cut_samples(s, 65536);
        scratch.want(args.columns, s.batch * s.parts * 3 * s.padded);
        scratch.want(args.affine, s.batch * 7 * s.padded);
    }
    scratch.take();
    const GroupNormKernels& k = kernels().group_norm_silu;
    run(planar ? k.planar_grad : k.channels_last_grad, args, planar ? s.items() : s.batch,
        [](const GroupNormGrad& a) { return a; });
}

// What both forward ops fill in alike.
GroupNorm arguments(const Tensor& x, int64_t groups, double eps, int64_t activation) {
    GroupNorm args = {};
    args.sizes = sizes_of(x, groups);
    args.activation = activation_of(activation);
    args.dtype = dtype_of(x);
    args.eps = eps;
    args.x = x.data_ptr();
    return args;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_silu(
    const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias, double eps, const Maybe& add,
    const Maybe& scale, const Maybe& shift, int64_t activation, const Maybe& residual) {
    GroupNorm args = arguments(x, groups, eps, activation);
    const SmallVectors vectors(x, weight, bias, add, scale, shift);
    args.small = vectors.small;
    const bool planar = is_planar(x, args.sizes);
    Tensor y = fresh_like(x);
    Tensor summed = residual.has_value() ? fresh_like(x) : empty(x.scalar_type(), {0});
    Tensor mean = empty(ScalarType::Float, {x.size(0), groups}),
           rstd = empty(ScalarType::Float, {x.size(0), groups});
    args.y = y.data_ptr();
    args.mean = static_cast<float*>(mean.data_ptr()), args.rstd = static_cast<float*>(rstd.data_ptr());
    if (residual.has_value()) {
        require(
            residual->is_cpu() && residual->scalar_type() == x.scalar_type() && same_layout(x, *residual),
            "residual must be like x");
        args.residual = residual->data_ptr(), args.summed = summed.data_ptr();
    }
    if (x.numel() == 0) {
        torch::stable::zero_(mean);
        torch::stable::zero_(rstd);
    } else {
        run_forward(args, planar);
    }
    return {y, summed, mean, rstd};
}

// The first result alone, for where nothing is kept for a gradient.
Tensor group_norm_silu_result(
    const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias, double eps, const Maybe& add,
    const Maybe& scale, const Maybe& shift, int64_t activation) {
    GroupNorm args = arguments(x, groups, eps, activation);
    const SmallVectors vectors(x, weight, bias, add, scale, shift);
    args.small = vectors.small;
    const bool planar = is_planar(x, args.sizes);
    Tensor y = fresh_like(x);
    args.y = y.data_ptr();
    if (x.numel() != 0) run_forward(args, planar);
    return y;
}

std::tuple<Tensor, Tensor> group_norm_silu_backward(
    const Tensor& grad, const Tensor& x, int64_t groups, const Maybe& weight, const Maybe& bias,
    const Tensor& mean, const Tensor& rstd, const Maybe& add, const Maybe& scale, const Maybe& shift,
    int64_t activation) {
    GroupNormGrad args = {};
    args.sizes = sizes_of(x, groups);
    const SmallVectors vectors(x, weight, bias, add, scale, shift);
    args.small = vectors.small;
    args.activation = activation_of(activation);
    args.dtype = dtype_of(x);
    const bool planar = is_planar(x, args.sizes);
    require(
        grad.is_cpu() && grad.scalar_type() == x.scalar_type() && same_layout(x, grad),
        "grad must be like x");
    for (const Tensor* t : {&mean, &rstd})
        require(
            t->is_cpu() && t->scalar_type() == ScalarType::Float && t->is_contiguous() &&
                t->numel() == args.sizes.items(),
            "mean and rstd must be contiguous float32 [B, groups]");
    Tensor dx = fresh_like(x);
    Tensor sums = empty(ScalarType::Float, {3, x.size(0), x.size(1)});
    args.grad = grad.data_ptr(), args.x = x.data_ptr(), args.dx = dx.data_ptr();
    args.mean = static_cast<const float*>(mean.data_ptr());
    args.rstd = static_cast<const float*>(rstd.data_ptr());
    args.channel_sums = static_cast<float*>(sums.data_ptr());
    if (x.numel() == 0)
        torch::stable::zero_(sums);
    else
        run_backward(args, planar);
    return {dx, sums};
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("group_norm_silu", TORCH_BOX(&fastdiff::group_norm_silu));
    library.impl("group_norm_silu_result", TORCH_BOX(&fastdiff::group_norm_silu_result));
    library.impl("group_norm_silu_backward", TORCH_BOX(&fastdiff::group_norm_silu_backward));
}
