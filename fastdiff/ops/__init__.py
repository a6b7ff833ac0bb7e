"""The operations: the only door to the kernels. Each has a schema, checks, a fake kernel and gradients."""

from fastdiff.ops._checks import is_dense
from fastdiff.ops.add_noise import add_noise
from fastdiff.ops.dynamic_bound import dynamic_bound
from fastdiff.ops.group_norm_silu import add_group_norm_silu, group_norm_silu
from fastdiff.ops.q_sample import QSample, q_sample
from fastdiff.ops.randn import randn
from fastdiff.ops.rescale_gain import rescale_gain
from fastdiff.ops.solver_step import solver_step, solver_step_
from fastdiff.ops.stepper import Stepper, stepper
from fastdiff.reference import COLUMNS, WIDTH, Step

__all__ = [
    "COLUMNS",
    "WIDTH",
    "QSample",
    "Step",
    "Stepper",
    "add_group_norm_silu",
    "add_noise",
    "dynamic_bound",
    "group_norm_silu",
    "is_dense",
    "q_sample",
    "randn",
    "rescale_gain",
    "solver_step",
    "solver_step_",
    "stepper",
]
