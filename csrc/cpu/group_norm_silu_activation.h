// The activations that follow the norm, and their derivatives.
#pragma once

#include "group_norm_silu_kernels.h"
#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

FASTDIFF_INLINE Floats smaller(Floats limit, Floats v) {  // v where it is NaN
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(
        _mm512_min_ps(reinterpret_cast<__m512>(limit), reinterpret_cast<__m512>(v)));
#else
    return select(limit < v, limit, v);
#endif
}

// Each takes z times its kInput, which the affine map before it multiplies in for nothing.
struct Identity {
    static constexpr float kInput = 1.0f;
    template <class T>
    static FASTDIFF_INLINE Floats value(Floats z) {
        return z;
    }
    template <class T>
    static FASTDIFF_INLINE Floats slope(Floats z) {
        return z - z + 1.0f;  // NaN for NaN
    }
};

// factor*2^t, to 7e-8, or 3e-6 or 8e-5 where only a float16 or bfloat16 will be seen. 0 where t is very small
// and infinity where it is very large.
template <class T>
FASTDIFF_INLINE Floats scaled_exp2(Floats t, float factor) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    const Floats whole = reinterpret_cast<Floats>(_mm512_roundscale_ps(reinterpret_cast<__m512>(t), 0));
    const Floats r = t - whole;
#else
    t = select(t > splat(127.0f), splat(127.0f), t);
    t = select(t < splat(-126.0f), splat(-126.0f), t);
    const Floats magic = splat(12582912.0f);  // 1.5*2^23: adding it rounds to an integer
    const Floats shifted = t + magic;
    const Floats r = t - (shifted - magic);
#endif
    Floats p;  // minimax fits on [-1/2, 1/2]
    if constexpr (sizeof(T) == 4) {
        p = r * (factor * 1.327646039e-3f) + factor * 9.675541241e-3f;
        p = p * r + factor * 5.550713309e-2f;
        p = p * r + factor * 2.402211973e-1f;
        p = p * r + factor * 6.931469670e-1f;
        p = p * r + factor * 1.000000072f;
    } else if constexpr (kBfloat<T>) {
        p = r * (factor * 5.517156773e-2f) + factor * 2.426111144e-1f;
        p = p * r + factor * 6.932610042e-1f;
        p = p * r + factor * 9.999280745e-1f;
    } else {
        p = r * (factor * 9.570090197e-3f) + factor * 5.591785940e-2f;
        p = p * r + factor * 2.402474513e-1f;
        p = p * r + factor * 6.931218149e-1f;
        p = p * r + factor * 9.999992614e-1f;
    }
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    return reinterpret_cast<Floats>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
    return p * floats((bits(shifted) - bits(magic) + 127) << 23);
#endif
}

// a/b, to 6e-5 where only a bfloat16 will be seen.
template <class T>
FASTDIFF_INLINE Floats quotient(Floats a, Floats b) {
#if defined(__AVX512F__)
    if constexpr (kBfloat<T>)
        return a * reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(b)));
#endif
    return a / b;
}

// 1/b for b in [1, 2^90], to about 1 ulp: where divisions are the bottleneck.
template <class T>
FASTDIFF_INLINE Floats reciprocal(Floats b) {
#if defined(__AVX512F__)
    const Floats guess = reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(b)));
    return kBfloat<T> ? guess : guess * (1.0f - b * guess) + guess;
#else
    return 1.0f / b;
#endif
}

struct Silu {
    static constexpr float kInput = -1.44269504f;
    // z/(1 + e) as (kInput*z)/(kInput + kInput*e), e = 2^(kInput*z): z itself is never needed.
    template <class T>
    static FASTDIFF_INLINE Floats value(Floats t) {
        return quotient<T>(t, kInput + scaled_exp2<T>(t, kInput));
    }
    // s + z*s*(1 - s) with s = 1/(1 + e), without the cancellation: 1 - s = e*s. Beyond z = -55 it is 0 to
    // 1e-22, and e must not overflow.
    template <class T>
    static FASTDIFF_INLINE Floats slope(Floats t) {
        t = smaller(splat(80.0f), t);
        const Floats e = scaled_exp2<T>(t, 1.0f / kInput);  // e/kInput, so that t times it is z*e
        const Floats s = reciprocal<T>(kInput * e + 1.0f);
        return (t * e * s) * s + s;
    }
};

struct Gelu {
    static constexpr float kInput = 1.0f;
    // The normal distribution's tail from |z| on: exp(-z^2/2) times a polynomial in 1/(1 + |z|/4), which fits
    // the rest to 1.3e-8.
    static FASTDIFF_INLINE Floats tail(Floats z, Floats bell) {
        const Floats u = 1.0f / (1.0f + 0.25f * abs(z));
        Floats p = u * 3.447777484e-2f - 1.990453878e-1f;
        p = p * u + 4.017158773e-1f;
        p = p * u - 3.423983533e-1f;
        p = p * u + 3.119085852e-1f;
        p = p * u - 2.437669683e-2f;
        p = p * u + 1.229563656e-1f;
        p = p * u + 9.451960333e-2f;
        p = p * u + 1.002657588e-1f;
        p = p * u - 2.353329643e-5f;
        return bell * p;
    }
    static FASTDIFF_INLINE Floats bell(Floats z) { return exp2(z * z * -7.21347520e-1f); }
    static FASTDIFF_INLINE Floats abs(Floats z) { return floats(bits(z) & 0x7fffffff); }

    template <class T>
    static FASTDIFF_INLINE Floats value(Floats z) {
        const Floats below = abs(z) * tail(z, bell(z));
        return select(z < splat(0.0f), Floats{}, z) - below;
    }
    template <class T>
    static FASTDIFF_INLINE Floats slope(Floats z) {
        const Floats b = bell(z), t = tail(z, b);
        return select(z < splat(0.0f), t, 1.0f - t) + z * b * 3.98942280e-1f;
    }
};

inline float input_factor(Activation activation) {
    return activation == Activation::silu ? Silu::kInput : 1.0f;
}

template <class F>
FASTDIFF_INLINE void with_activation(Activation activation, const F& f) {
    switch (activation) {
        case Activation::none:
            return f(Identity{});
        case Activation::silu:
            return f(Silu{});
        case Activation::gelu:
            return f(Gelu{});
    }
}

}  // namespace FASTDIFF_LEVEL
}  // namespace fastdiff
