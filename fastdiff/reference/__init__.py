"""Plain PyTorch: the specification of every operation.

Each function reads as its formula. The kernels of the other backends are tested against these, and every op falls back
to them for what a kernel does not take (float64 above all). Half precision is computed in float32 and rounded once.
"""

from fastdiff.reference.common import compute_dtype, per_channel, per_sample
from fastdiff.reference.noise import add_noise, q_sample, randn_like
from fastdiff.reference.norm import (
    ACTIVATE,
    ACTIVATIONS,
    DERIVATIVE,
    gelu_derivative,
    group_norm_silu,
    group_norm_silu_backward,
    group_statistics,
    silu_derivative,
)
from fastdiff.reference.row import COLUMNS, WIDTH, branches, clamp, guide, weighted_sum, weights
from fastdiff.reference.step import (
    Step,
    dynamic_bound,
    gain_between,
    quantile_bound,
    rescale_gain,
    row_noise,
    solver_step,
    solver_step_,
)

__all__ = [
    "ACTIVATE",
    "ACTIVATIONS",
    "COLUMNS",
    "DERIVATIVE",
    "WIDTH",
    "Step",
    "add_noise",
    "branches",
    "clamp",
    "compute_dtype",
    "dynamic_bound",
    "gain_between",
    "gelu_derivative",
    "group_norm_silu",
    "group_norm_silu_backward",
    "group_statistics",
    "guide",
    "per_channel",
    "per_sample",
    "q_sample",
    "quantile_bound",
    "randn_like",
    "rescale_gain",
    "row_noise",
    "silu_derivative",
    "solver_step",
    "solver_step_",
    "weighted_sum",
    "weights",
]
