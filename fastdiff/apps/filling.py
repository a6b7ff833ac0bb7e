"""Smooth fillings of holes in pictures: what a restoration starts from, and the baseline that it must beat.

The filling is the surface of least bending, the minimum of |L x|^2 over the missing pixels with L the Laplacian, as
scikit-image's inpaint_biharmonic (Damelin and Hoang 2018), found by conjugate gradients from a pyramid of means.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 200
PRECISION = 1e-5


def filled(picture: Tensor, mask: Tensor, *, iterations: int = ITERATIONS) -> Tensor:
    """`picture` with the pixels where mask > 0 replaced by a smooth surface through the others.

    picture: float [C, H, W]. mask: [1, H, W]. iterations: at most; holes tens of pixels deep converge slowly, and stay
    near means of what surrounds them, which is what keeps the surface from overshooting there. The result lies within
    the range of the known pixels. Where nothing is known, it is the middle of the range, 0.
    """
    hole = (mask > 0).to(torch.float64)
    known = picture.double() * (1 - hole)
    if not hole.any():
        return picture.clone()
    if hole.all():
        return torch.zeros_like(picture)
    start = torch.where(hole > 0, _means(known, 1 - hole), known)
    smooth = _least_bending(start, hole, iterations)
    low, high = (picture[..., hole[0] == 0].aminmax(dim=-1)[i].double()[:, None, None] for i in (0, 1))
    return torch.where(hole > 0, smooth.clamp(low, high), known).to(picture.dtype)


def depth(mask: Tensor, *, most: int = 64) -> int:
    """How many pixels the deepest point of a hole lies from the nearest known pixel, at most `most`.

    mask: [1, H, W], a hole where > 0; the rim of the picture counts as known only where it is.
    """
    rest, steps = (mask > 0).float()[None], 0
    while steps < most and bool(rest.any()):
        rest, steps = -F.max_pool2d(F.pad(-rest, (1, 1, 1, 1), value=-1.0), 3, stride=1), steps + 1
    return steps


def _means(values: Tensor, weight: Tensor) -> Tensor:
    """Known values spread into holes, from the means over ever larger squares: [C, H, W]."""
    pyramid = [(values[None], weight[None])]
    while not bool((pyramid[-1][1] > 0).all()):
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    total, mass = pyramid.pop()
    spread = total / mass
    for total, mass in reversed(pyramid):
        spread = F.interpolate(spread, size=total.shape[-2:], mode="bilinear", align_corners=False)
        spread = torch.where(mass > 0, total / mass.clamp(min=1e-12), spread)
    return spread[0]


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True)


def _laplacian(x: Tensor) -> Tensor:
    """The sum of differences to the four neighbours, those beyond the rim left out: symmetric. [C, H, W]."""
    vertical, horizontal = x.diff(dim=-2), x.diff(dim=-1)
    return (
        F.pad(vertical, (0, 0, 0, 1)) - F.pad(vertical, (0, 0, 1, 0))
        + F.pad(horizontal, (0, 1)) - F.pad(horizontal, (1, 0))
    )  # fmt: skip


def _least_bending(x: Tensor, hole: Tensor, iterations: int) -> Tensor:
    """Conjugate gradients on |L x|^2 over the pixels of the hole, each channel with its own steps."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2), keepdim=True)

    residual = -hole * _laplacian(_laplacian(x))
    direction, left = residual, dot(residual, residual)
    enough = PRECISION**2 * left.clamp(min=1e-30)
    for _ in range(iterations):
        if bool((left <= enough).all()):
            break
        bent = hole * _laplacian(_laplacian(direction))
        step = left / dot(direction, bent).clamp(min=1e-300)
        x, residual = x + step * direction, residual - step * bent
        before, left = left, dot(residual, residual)
        direction = residual + left / before.clamp(min=1e-300) * direction
    return x
