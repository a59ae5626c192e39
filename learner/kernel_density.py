r"""A prior with an exact score: the kernel density of draws, of the width under which held-out draws are likeliest.

    p(x) = 1 / C sum_i N(x; x_i, h^2 I)

A Gaussian mixture: its denoiser, density and draws are all in closed form (`diffusion.denoiser.MixtureDenoiser`), so
what is learned under it can be compared with the truth. It is for few dimensions: the number of draws that it needs
grows exponentially with them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.denoising_error import measure_denoising_error
from diffusion.stored_prior import StoredPrior, save_prior
from envs.data import DATASETS, Dataset

__all__ = ["kernel_density", "store_kernel_density"]

MEASURED = 4_096  # draws that give the error of the estimate to a percent


def kernel_density(draws: Tensor, held_out: Tensor) -> MixtureDenoiser:
    """The kernel density of `draws` [C, *D], its width chosen by `held_out` [M, *D]; both in the units of x."""
    flat, others = draws.flatten(1), held_out.double()
    scale = float(flat.double().std(0).mean())
    shape = tuple(draws.shape[1:])

    def loss(log_width: float) -> float:
        return -float(MixtureDenoiser(flat, math.exp(2 * log_width), event_shape=shape).log_prob(others).mean())

    bounds = (math.log(1e-3 * scale), math.log(3 * scale))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-2})
    return MixtureDenoiser(flat, round(math.exp(found.x), 3) ** 2, event_shape=shape)


def store_kernel_density(
    data: Dataset, components: int, folder: Path, seed: int = 0, *, made_by: str | None = None
) -> Path:
    """Writes the kernel density of `components` of the draws of `data`, chosen with `seed`, as a stored prior.

    `made_by` is the call that its card names, where that is not the one of this function on a data set by name.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= components <= len(data.train):
        raise ValueError(
            f"components must be within 1..{len(data.train)}, the draws of {data.name!r}, got {components}"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data.train), generator=generator)[:components]
    denoiser = kernel_density(data.train[rows], data.held_out)
    width = float(denoiser.eigenvalues[0].sqrt())
    variance = denoiser.means.double().var(0, correction=0).mean() + width**2
    data_std = float(variance.sqrt())
    clean = denoiser.sample(MEASURED, generator).float()
    stored = StoredPrior(
        event_shape=data.event_shape,
        data_std=data_std,
        denoiser={"kind": "mixture", "components": components, "variance": width**2},
        denoising_error=measure_denoising_error(denoiser, clean, data_std),
        value_range=data.value_range,
        data={"name": data.name} if data.name in DATASETS else None,  # draws of a user's own have no name to load by
    )
    likely = float(denoiser.log_prob(data.held_out).mean())
    if made_by is None:
        call = f'store_kernel_density(load_dataset("{data.name}"), {components}, folder, {seed})'
        made_by = f"learner.kernel_density.{call}"
    card = f"""# Kernel density of {data.name}

A mixture of {components:,} Gaussians of standard deviation {width:g} in the units of x, around draws of the data set
`{data.name}` (chosen with seed {seed}). The width is the one under which the {len(data.held_out):,} held-out draws are
likeliest: {likely:.3f} nats each. The denoiser, the density and the draws of this prior are exact.

- Data: {data.source}.
- Split: {data.split}.
- Licence of the data: {data.licence}.
- Made by `{made_by}`.
"""
    return save_prior(folder, stored, denoiser, card)
