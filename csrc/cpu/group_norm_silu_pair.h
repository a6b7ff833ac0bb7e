// Two vectors at once. Of bfloat16 they hold the even and the odd elements: then 32 bits of memory become two
// floats by a shift and a mask, and go back without moving between lanes.
#pragma once

#include "group_norm_silu_kernels.h"
#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

constexpr int kPair = 2 * kLanes;

struct Pair {
    Floats v[2];
};

struct WholePair {
    static constexpr bool whole = true;
};
struct PartOfPair {
    static constexpr bool whole = false;
};

// Where element `c` of a row lies among the lanes of its pairs.
template <class T>
FASTDIFF_INLINE int64_t place(int64_t c) {
    return kBfloat<T> ? (c & -kPair) + ((c & (kPair - 1)) >> 1) + (c & 1) * kLanes : c;
}

// --- whole pairs ---

// The even and the odd ones of bfloat16 values that lie in order.
FASTDIFF_INLINE Pair halves(Words w) {
    return {{reinterpret_cast<Floats>(w << 16), reinterpret_cast<Floats>(w & 0xffff0000u)}};
}

// The bits of v rounded to bfloat16 in the upper half, whatever below.
FASTDIFF_INLINE Words upper(Floats v) {
    const Words b = reinterpret_cast<Words>(v);
    const Ints rounded = reinterpret_cast<Ints>(b + 0x7fff + ((b >> 16) & 1));  // to nearest, ties to even
    return reinterpret_cast<Words>(v == v ? rounded : Ints{} + 0x7fc00000);
}

// A pair as bfloat16 values in order.
FASTDIFF_INLINE Words joined_halves(const Pair& pair) {
    return (upper(pair.v[0]) >> 16) | (upper(pair.v[1]) & 0xffff0000u);
}

// Asks for the memory of a pair to be brought into the second level of cache.
template <class T>
FASTDIFF_INLINE void prefetch_pair(const T* p) {
    for (size_t i = 0; i < kPair * sizeof(T); i += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + i, 0, 2);
}

template <class T>
FASTDIFF_INLINE Pair load_pair(const T* p) {
    if constexpr (kBfloat<T>) {
        return halves(load_as<Words>(p));
    } else {
        return {{load(p), load(p + kLanes)}};
    }
}

template <class T>
FASTDIFF_INLINE void store_pair(T* p, const Pair& pair) {
    if constexpr (kBfloat<T>) {
        const Words w = joined_halves(pair);
        std::memcpy(p, &w, sizeof(w));
    } else {
        store(p, pair.v[0]);
        store(p + kLanes, pair.v[1]);
    }
}

// What is read back after a store.
template <class T>
FASTDIFF_INLINE Pair rounded(const Pair& pair) {
    Pair out = pair;
    for (Floats& v : out.v) {
        if constexpr (kBfloat<T>) {
            v = reinterpret_cast<Floats>(upper(v) & 0xffff0000u);
        } else if constexpr (sizeof(T) == 2) {
            v = widen(narrow(v, T{}), T{});
        }
    }
    return out;
}

// Like store_pair, but of bfloat16 a value halfway between two goes away from 0, and a NaN must have 0 in the
// lower half of its bits, as every NaN of an operation on bfloat16 values has.
template <class T>
FASTDIFF_INLINE void store_pair_fast(T* p, const Pair& pair) {
    if constexpr (kBfloat<T>) {
        const Words even = reinterpret_cast<Words>(pair.v[0]) + 0x8000;
        const Words odd = reinterpret_cast<Words>(pair.v[1]) + 0x8000;
        const Words w = (even >> 16) | (odd & 0xffff0000u);
        std::memcpy(p, &w, sizeof(w));
    } else {
        store_pair(p, pair);
    }
}

// How many of the first `count` elements of a pair are in its first vector, where they lie in order.
FASTDIFF_INLINE int64_t of_first(int64_t count) { return count < kLanes ? count : kLanes; }

// --- pairs of which only the first `count` elements are there: the others load as 0 ---

template <class P, class T>
FASTDIFF_INLINE Pair load_pair(const T* p, int64_t count) {
    if constexpr (P::whole) return load_pair(p);
#if defined(__AVX512F__)
    if constexpr (kBfloat<T>)
        return halves(reinterpret_cast<Words>(_mm512_maskz_loadu_epi16((1u << count) - 1, p)));
    else
        return {{load_part(p, of_first(count)), load_part(p + kLanes, count - of_first(count))}};
#else
    T padded[kPair] = {};
    std::memcpy(padded, p, count * sizeof(T));
    return load_pair(padded);
#endif
}

template <class P, class T>
FASTDIFF_INLINE void store_pair(T* p, const Pair& pair, int64_t count) {
    if constexpr (P::whole) return store_pair(p, pair);
#if defined(__AVX512F__)
    if constexpr (kBfloat<T>) {
        _mm512_mask_storeu_epi16(p, (1u << count) - 1, reinterpret_cast<__m512i>(joined_halves(pair)));
    } else {
        store_part(p, pair.v[0], of_first(count));
        store_part(p + kLanes, pair.v[1], count - of_first(count));
    }
#else
    T padded[kPair];
    store_pair(padded, pair);
    std::memcpy(p, padded, count * sizeof(T));
#endif
}

template <class P, class T>
FASTDIFF_INLINE void store_pair_fast(T* p, const Pair& pair, int64_t count) {
    if constexpr (P::whole) return store_pair_fast(p, pair);
    store_pair<P>(p, pair, count);
}

// The pair with 0 in place of what lies past the end.
template <class T>
FASTDIFF_INLINE Pair masked(const Pair& pair, int64_t count) {
    Pair out = pair;
    for (int64_t c = count; c < kPair; ++c) {
        const int64_t at = place<T>(c);
        out.v[at / kLanes][at % kLanes] = 0;
    }
    return out;
}

// Calls body(piece, offset, count) over [0, count): whole pairs, then what is left of one.
template <class Body>
FASTDIFF_INLINE void for_pairs(int64_t count, const Body& body) {
    int64_t i = 0;
    for (; i + kPair <= count; i += kPair) body(WholePair{}, i, int64_t{kPair});
    if (i < count) body(PartOfPair{}, i, count - i);
}

FASTDIFF_INLINE float sum(const Pair& pair) { return sum(pair.v[0] + pair.v[1]); }

template <class F>
FASTDIFF_INLINE auto with_dtype(Dtype dtype, const F& f) {
    switch (dtype) {
        case Dtype::f32:
            return f(float{});
        case Dtype::f16:
            return f(Half{});
        default:
            return f(Bfloat{});
    }
}

// The phases of items [begin, end), one item after another while it is in cache. settled(args): the arguments
// after the first sum.
template <class Args, class Settled>
FASTDIFF_INLINE void run_phases(
    const Phases<Args>& phases, const Args& args, int64_t begin, int64_t end, const Settled& settled) {
    const int64_t parts = args.sizes.parts;
    const Args after = settled(args);
    for (int64_t item = begin; item < end; ++item) {
        const int64_t from = item * parts, to = from + parts;
        phases.start(args, item, item + 1);
        phases.sum(args, from, to);
        if (!phases.finish(after, item, item + 1, false)) {
            phases.sum(after, from, to);
            phases.finish(after, item, item + 1, true);
        }
        phases.apply(after, from, to);
    }
}

inline void widen_all(const void* from, Dtype dtype, int64_t count, float* to) {
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        for_pieces(0, count, [&](auto piece, int64_t i, int64_t n) FASTDIFF_INLINE_LAMBDA {
            using P = decltype(piece);
            store_tile<P>(to + i, load_tile<P>(static_cast<const T*>(from) + i, n), n);
        });
    });
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
