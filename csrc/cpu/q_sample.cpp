// add_noise, q_sample and randn_like on the CPU: noise that is given, drawn from a generator's state, or
// counter-based.
#include <cstddef>

#include "fresh.h"
#include "mt19937.h"

namespace fastdiff {
namespace {

constexpr int64_t kChunk = 1024;  // values drawn before they are used: in the first-level cache

GeneratorState read_state(const void* from) {
    GeneratorState state;
    std::memcpy(&state, from, sizeof(state));
    require(
        state.left >= 1 && state.left <= 624 &&
            (state.left == 1 || state.next + static_cast<uint64_t>(state.left) == 625),
        "state: it is not that of a mt19937 generator");
    return state;
}

GeneratorState read_state(const Tensor& t) {
    require(
        t.is_cpu() && t.scalar_type() == ScalarType::Byte && t.is_contiguous() &&
            t.numel() == sizeof(GeneratorState),
        "state: it must be what a CPU generator's get_state() gives");
    return read_state(static_cast<const void*>(t.data_ptr()));
}

Tensor write_state(const GeneratorState& state, const Tensor& like) {
    Tensor out = torch::stable::empty_like(like);
    std::memcpy(out.data_ptr(), &state, sizeof(state));
    return out;
}

// Which values torch.randn draws from which words, for 16 values and more: blocks of 16 in order, and where
// the size is no multiple of 16 the last 16 values again, from words after those of all values (float32) or
// of all whole blocks.
struct Plan {
    int64_t blocks, last, tail;  // `last` values end the first part; word `tail` begins the second

    Plan(int64_t size, Dtype dtype)
        : blocks(size / 16),
          last(size % 16 ? size - 16 : size),
          tail(dtype == Dtype::f32 ? size : blocks * 16) {}
};

// Every thread runs through all the words before its share, which costs about a tenth of making values of
// them: so each takes less than the one before.
std::vector<int64_t> shares(int64_t blocks, int64_t threads) {
    constexpr double kSkipping = 0.1;
    double total = 0, part = 1;
    for (int64_t t = 0; t < threads; ++t, part *= 1 - kSkipping) total += part;
    std::vector<int64_t> begins{0};
    double end = 0;
    part = 1;
    for (int64_t t = 0; t < threads; ++t, part *= 1 - kSkipping) {
        end += part / total;
        begins.push_back(t + 1 == threads ? blocks : static_cast<int64_t>(end * static_cast<double>(blocks)));
    }
    return begins;
}

void draw_blocks(const QSample& args, const Plan& plan, Words624& words, int64_t begin, int64_t end) {
    words.skip(begin * 16);
    if (!args.x && args.dtype == Dtype::f32 && !args.streams)  // what follows plan.last is written over
        return words.normal(end - begin, static_cast<float*>(args.noise) + begin * 16);
    const auto kernel = kernels().q_sample;
    alignas(64) float drawn[kChunk];
    for (int64_t block = begin; block < end; block += kChunk / 16) {
        const int64_t count = std::min<int64_t>(kChunk / 16, end - block);
        words.normal(count, drawn);
        kernel(args, drawn, block * 16, std::min((block + count) * 16, plan.last));
    }
}

void draw(const QSample& args, int64_t size, GeneratorState& state) {
    constexpr int64_t kGrain = 32768;
    Words624 words(state);
    if (size < 16) {
        float drawn[16];
        draw_few(state, words, size, drawn);
        kernels().q_sample(args, drawn, 0, size);
        return words.save(state);
    }
    const Plan plan(size, args.dtype);
    const int64_t most = is_forked() ? 1 : torch::stable::get_num_threads();
    const int64_t threads = std::max<int64_t>(std::min(most, size / kGrain), 1);
    const std::vector<int64_t> begins = shares(plan.blocks, threads);
    const auto run = [&](int64_t first, int64_t end) {
        for (int64_t t = first; t < end; ++t) {
            Words624 own(words);
            draw_blocks(args, plan, own, begins[t], begins[t + 1]);
            if (t + 1 < threads) continue;
            if (plan.last < size) {
                float drawn[16];
                own.skip(plan.tail - plan.blocks * 16);
                own.normal(1, drawn);
                kernels().q_sample(args, drawn, size - 16, size);
            }
            own.save(state);
        }
    };
    threads == 1 ? run(0, 1) : torch::stable::parallel_for(0, threads, 1, run);
}

void draw_counted(const QSample& args, int64_t size, const int64_t* seeds, int64_t stream) {
    const Kernels& k = kernels();
    run_parallel(size, kChunk, 16384, [&](int64_t begin, int64_t end) {
        alignas(64) float drawn[kChunk];
        while (begin < end) {
            const int64_t sample = begin / args.sample_size, within = begin % args.sample_size;
            const int64_t count = std::min({kChunk, end - begin, args.sample_size - within});
            k.counter_normal(
                static_cast<uint64_t>(seeds[sample]), static_cast<uint64_t>(stream), within, count, drawn);
            k.q_sample(args, drawn, begin, begin + count);
            begin += count;
        }
    });
}

const int64_t* read_seeds(const Tensor& seeds, const Tensor& x) {
    require(
        seeds.is_cpu() && seeds.scalar_type() == ScalarType::Long && seeds.dim() == 1 &&
            seeds.is_contiguous() && seeds.numel() == size_of(x),
        "seeds: they must be int64, one a sample");
    return static_cast<const int64_t*>(seeds.data_ptr());
}

// Draws into args and returns the state afterwards, empty if there was none.
Tensor draw_all(
    const QSample& args, const Tensor& x, const Maybe& state, const Maybe& seeds, int64_t stream) {
    require(state.has_value() != seeds.has_value(), "give one of noise, state and seeds");
    require(x.is_contiguous(), "x0 must be contiguous for noise to be drawn");
    if (seeds) {
        const int64_t* values = read_seeds(*seeds, x);
        if (x.numel()) draw_counted(args, x.numel(), values, stream);
        return torch::stable::new_empty(x, std::vector<int64_t>{0}, ScalarType::Byte);
    }
    GeneratorState after = read_state(*state);
    if (x.numel()) draw(args, x.numel(), after);
    return write_state(after, *state);
}

const float* level(const Tensor& t, int64_t batch, int64_t& step) {
    require(
        t.scalar_type() == ScalarType::Float && t.is_cpu() && t.dim() == 1 && t.is_contiguous() &&
            (t.numel() == 1 || t.numel() == batch),
        "alpha and sigma must be float32, one value or one a sample");
    step = t.numel() == 1 ? 0 : 1;
    return static_cast<const float*>(t.data_ptr());
}

// What x0, alpha and sigma say, and x to be written.
QSample levels_of(const Tensor& x0, const Tensor& alpha, const Tensor& sigma, const Tensor& x) {
    const int64_t batch = size_of(x0);
    QSample args = {};
    args.dtype = dtype_of(x0);
    args.alpha = level(alpha, batch, args.alpha_step);
    args.sigma = level(sigma, batch, args.sigma_step);
    args.sample_size = batch ? x0.numel() / batch : 0;
    args.x0 = x0.data_ptr();
    args.x = x.data_ptr();
    args.streams = exceeds_caches(3 * x0.numel() * width_of(args.dtype));  // x0, noise, x
    return args;
}

void mix(QSample args, const Tensor& x0, const Tensor& noise) {
    require(
        noise.is_cpu() && noise.scalar_type() == x0.scalar_type() && same_layout(x0, noise),
        "noise must have x0's dtype and layout");
    args.noise = noise.data_ptr();
    const auto kernel = kernels().q_sample;
    const int64_t numel = x0.numel();
    if (numel)
        run_parallel(
            numel, 1024, 65536, [&](int64_t begin, int64_t end) { kernel(args, nullptr, begin, end); });
}

Tensor add_noise(const Tensor& x0, const Tensor& noise, const Tensor& alpha, const Tensor& sigma) {
    require(x0.is_cpu() && is_dense(x0), "x0 must be dense and on the CPU");
    Tensor x = fresh_like(x0);
    mix(levels_of(x0, alpha, sigma, x), x0, noise);
    return x;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> q_sample(
    const Tensor& x0, const Maybe& noise, const Tensor& alpha, const Tensor& sigma, const Maybe& state,
    const Maybe& seeds, int64_t stream, bool velocity) {
    require(x0.is_cpu() && is_dense(x0), "x0 must be dense and on the CPU");
    const auto none = [&](ScalarType type) {
        return torch::stable::new_empty(x0, std::vector<int64_t>{0}, type);
    };
    Tensor x = fresh_like(x0), target = velocity ? fresh_like(x0) : none(x0.scalar_type());
    QSample args = levels_of(x0, alpha, sigma, x);
    args.velocity = velocity ? target.data_ptr() : nullptr;
    if (noise) {
        require(!state && !seeds, "give one of noise, state and seeds");
        mix(args, x0, *noise);
        return {x, none(x0.scalar_type()), target, none(ScalarType::Byte)};
    }
    Tensor drawn = fresh_like(x0);
    args.noise = drawn.data_ptr();
    return {x, drawn, target, draw_all(args, x0, state, seeds, stream)};
}

std::tuple<Tensor, Tensor> randn_like(
    const Tensor& x, const Maybe& state, const Maybe& seeds, int64_t stream) {
    require(x.is_cpu(), "x must be on the CPU");
    Tensor out = fresh_like(x);
    QSample args = {};
    args.dtype = dtype_of(x);
    args.noise = out.data_ptr();
    args.streams = exceeds_caches(x.numel() * width_of(args.dtype));
    args.sample_size = size_of(x) ? x.numel() / size_of(x) : 0;
    Tensor after = draw_all(args, x, state, seeds, stream);
    return {out, after};
}

}  // namespace
}  // namespace fastdiff

// randn_like without PyTorch in between, for fastdiff/ops/_drawing.py: numel values of a Dtype from one state
// of a generator to the next. Returns 0, or -1 where the state is none.
extern "C" __attribute__((visibility("default"))) int fastdiff_draw_1(
    void* out, int64_t numel, int dtype, const void* state, void* after) {
    using namespace fastdiff;
    try {
        GeneratorState drawn = read_state(state);
        QSample args = {};
        args.dtype = static_cast<Dtype>(dtype);
        args.noise = out;
        args.streams = exceeds_caches(numel * width_of(args.dtype));
        args.sample_size = numel;
        draw(args, numel, drawn);
        std::memcpy(after, &drawn, sizeof(drawn));
        return 0;
    } catch (const std::exception&) {
        return -1;
    }
}

// Whether two states are alike, but for what lies between their fields.
extern "C" __attribute__((visibility("default"))) int fastdiff_same_state(const void* a, const void* b) {
    return std::memcmp(a, b, offsetof(fastdiff::GeneratorState, padding)) == 0;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
    library.impl("add_noise", TORCH_BOX(&fastdiff::add_noise));
    library.impl("q_sample", TORCH_BOX(&fastdiff::q_sample));
    library.impl("randn_like", TORCH_BOX(&fastdiff::randn_like));
}
