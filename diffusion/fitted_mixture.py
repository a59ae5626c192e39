r"""A density in closed form where a prior has none: the Gaussian, or the kernel density, of draws of it.

    N(x; m, S + r^2 I)    or    1 / C sum_i N(x; x_i, h^2 S + r^2 I),

m and S being the mean and the covariance of the draws x_i. Which of the two, and h and r, is decided by held-out draws:
the density is taken under which they are likeliest. It has the prior's mean, scales and correlations, and as much of
its modes as so many draws show; where weights correct for the rest, as those of paths do, that is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser

__all__ = ["fitted_mixture"]

WIDTHS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # h
FLOORS = (0.003, 0.01, 0.03, 0.1, 0.3)  # r, of the root of the mean variance


def fitted_mixture(draws: Tensor, held_out: Tensor) -> MixtureDenoiser:
    """The density of `draws` [C, *D] under which `held_out` [M, *D] are likeliest, of one component or of C.

    Raises:
        ValueError: draws that are all the same, or not finite.
    """
    flat, others = draws.flatten(1).double(), held_out.double()
    covariance = torch.cov(flat.T, correction=0).reshape(flat.shape[1], flat.shape[1])
    scale = covariance.diagonal().mean().sqrt()
    if not (bool(torch.isfinite(scale)) and float(scale) > 0):
        raise ValueError(f"draws must be finite and differ, got {len(draws)} of standard deviation {float(scale):g}")
    identity = torch.eye(len(covariance)).to(covariance)
    best, most = None, -torch.inf
    for width in (1.0, *WIDTHS):
        means = flat.mean(0, keepdim=True) if width == 1 else flat
        for floor in FLOORS:
            kernel = width**2 * covariance + (floor * scale) ** 2 * identity
            density = MixtureDenoiser(means, kernel, event_shape=tuple(draws.shape[1:]))
            likely = float(density.log_prob(others).mean())
            if best is None or likely > most:
                best, most = density, likely
    assert best is not None
    return best
