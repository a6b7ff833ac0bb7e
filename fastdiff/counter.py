"""Counter-based normal noise: the n-th value of stream s of seed k is a pure function of (k, s, n).

Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) makes the random bits, Box-Muller the normal values. The
transform is written with float32 additions, multiplications and square roots alone, each correctly rounded, in this
order: a backend that keeps it (no fused multiply-add, no library logarithm) gives the same bits. So an image's noise
depends on its own seed, and not on the batch, the dtype, the device or the memory layout. This file is the
specification.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF

# Chebyshev fits, each a float32 exactly, highest power first.
LOG = (
    0.07149753719568253, -0.115712009370327, 0.11661510914564133, -0.12411050498485565,
    0.14249937236309052, -0.1666848063468933, 0.20000708103179932, -0.24999989569187164,
    0.3333333134651184,
)  # fmt: skip
"""log(1 + f) = f - f^2/2 + f^3*LOG(f) for 1 + f in [sqrt(1/2), sqrt(2)]; about 8e-8 relative."""
SIN = (
    0.00015820653061382473,
    -0.004681266378611326,
    0.07969257980585098,
    -0.6459640860557556,
    1.5707963705062866,
)
"""sin(pi/2*v) = v*SIN(v^2) for |v| <= 1/2."""
COS = (0.00090362987248227, -0.02086007036268711, 0.25366920232772827, -1.2337005138397217, 1.0)
"""cos(pi/2*v) = COS(v^2) for |v| <= 1/2."""
LN2_HIGH, LN2_LOW = 0.693359375, -0.00021219444170128554


def normal(seeds: Tensor, size: int, stream: int = 0) -> Tensor:
    """The first `size` values of stream `stream` for each seed. seeds: int64 [B]; returns float32 [B, size].

    Values 4j to 4j + 3 come from the Philox block with counter (j, stream) and key seed.
    """
    blocks = torch.arange((size + 3) // 4, device=seeds.device).expand(len(seeds), -1)
    words = philox(blocks, stream, seeds[:, None])
    pairs = (*box_muller(words[0], words[1]), *box_muller(words[2], words[3]))
    return torch.stack(pairs, dim=-1).flatten(1)[:, :size]


def philox(block: Tensor, stream: int, seed: Tensor) -> list[Tensor]:
    """Four words of 32 bits for each counter (block, stream) and key seed, as int64 tensors."""
    counter = [block & WORD, block >> 32 & WORD, torch.full_like(block, stream & WORD)]
    counter.append(torch.full_like(block, stream >> 32 & WORD))
    key = [seed & WORD, seed >> 32 & WORD]
    for _ in range(ROUNDS):
        products = [counter[0] * MULTIPLIERS[0], counter[2] * MULTIPLIERS[1]]  # modulo 2^64, as is right
        high, low = ([p >> shift & WORD for p in products] for shift in (32, 0))
        counter = [high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]]
        key = [(k + step) & WORD for k, step in zip(key, KEY_STEPS)]
    return counter


def box_muller(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal values from two words: radius from the upper 24 bits of x, angle from those of y."""
    radius = root(-2.0 * log(((x >> 8) + 1).float() * 2.0**-24))
    turn = y >> 8
    quarter, v = turn >> 22, ((turn & (2**22 - 1)) - 2**21).float() * 2.0**-22
    square = v * v
    sine, cosine = v * polynomial(SIN, square), polynomial(COS, square)
    swapped, turned = quarter % 2 == 1, quarter >= 2
    first, second = torch.where(swapped, -sine, cosine), torch.where(swapped, cosine, sine)
    return tuple(radius * torch.where(turned, -value, value) for value in (first, second))  # type: ignore[return-value]


def root(x: Tensor) -> Tensor:
    """The square root of float32 x, correctly rounded, which torch.sqrt of float32 is not on every CPU."""
    return torch.sqrt(x.double()).float()


def log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 u in (0, 1], never above 0."""
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # u = 2^exponent*(1 + f), 1 + f in [sqrt(1/2), sqrt(2))
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    square, e = f * f, exponent.float()
    tail = f * square * polynomial(LOG, f) - 0.5 * square
    return e * LN2_LOW + tail + f + e * LN2_HIGH


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule, each product and each sum rounded."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
