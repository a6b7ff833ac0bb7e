// The activations that follow the norm, and their derivatives.
#pragma once

#include "group_norm_silu_kernels.h"
#include "vector.h"

namespace fastdiff {
namespace FASTDIFF_LEVEL {

struct Identity {
    static FASTDIFF_INLINE Floats value(Floats z) { return z; }
    static FASTDIFF_INLINE Floats slope(Floats z) { return z - z + 1.0f; }  // NaN for NaN
};

struct Silu {
    static FASTDIFF_INLINE Floats value(Floats z) { return silu(z); }
    static FASTDIFF_INLINE Floats slope(Floats z) {
        const Floats e = exp2(z * -1.44269504f), s = 1.0f / (1.0f + e);
        // 1 - s = e*s, without the cancellation; not where e is infinite
        return s + z * s * select(e < splat(1e30f), e * s, splat(1.0f));
    }
};

struct Gelu {
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

    static FASTDIFF_INLINE Floats value(Floats z) {
        const Floats below = abs(z) * tail(z, bell(z));
        return select(z < splat(0.0f), Floats{}, z) - below;
    }
    static FASTDIFF_INLINE Floats slope(Floats z) {
        const Floats b = bell(z), t = tail(z, b);
        return select(z < splat(0.0f), t, 1.0f - t) + z * b * 3.98942280e-1f;
    }
};

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
