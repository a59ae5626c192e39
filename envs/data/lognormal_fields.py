r"""`lognormal-fields`: the matter of a periodic square, simulated as a lognormal field (Coles and Jones 1991).

    g ~ N(0, P),    P(f) ~ (knee^2 + |f|^2)^-slope,    1 + delta = exp(g - s^2 / 2),

f in cycles per box, P scaled to the variance s^2 of a cell. x [1, n, n] is g, the logarithm of the density but for a
constant: the density itself follows by `envs.operators.Lognormal`. Draws are exact, and those of the prior of
`galaxy-field`.
"""

from __future__ import annotations

import torch

from diffusion.field_denoiser import FieldDenoiser, power_law
from envs.data.dataset import Dataset, parted

__all__ = ["lognormal_fields"]


def lognormal_fields(
    *, count: int = 4_000, size: int = 16, std: float = 1.0, slope: float = 1.5, knee: float = 2.0, seed: int = 0
) -> Dataset:
    """`count` fields of `size` x `size` cells of standard deviation `std`; a tenth is held out."""
    if not std > 0:
        raise ValueError(f"std must be positive, that of the logarithm of the density in a cell, got {std}")
    generator = torch.Generator().manual_seed(seed)
    fields = FieldDenoiser(std**2 * power_law(size, slope, knee)).sample(count, generator).float()
    train, held_out, split = parted(count)
    return Dataset(
        name="lognormal-fields",
        train=fields[train],
        held_out=fields[held_out],
        split=split,
        source=f"simulated: logarithm of a lognormal field in a box, std {std:g}, slope {slope:g}, knee {knee:g}",
        licence="none needed: computed",
    )
