r"""What is not known of x at every level, as the samplers of other libraries have it.

With v the mean squared error of x^ per dimension, a transition's variance is beta~ + b^2 v (`diffusion.kernel`).

    "small": v = 0. DDPM's fixed_small, DDIM with eta = 1, ancestral Euler steps, stochastic steps of flow matching.
    "large": v = h^2 sigma^2 / (alpha^2 h^2 + sigma^2), that of data of standard deviation h: DDPM's fixed_large.

Their last transition, from the cleanest level to x, has no noise (DDPM, ancestral Euler), or none when it is "small".
Here it must have a density, so that its v is the "large" one, sigma^2 / alpha^2 where that is little: no estimate of x
can be worse than s / alpha is, and x keeps the noise that its cleanest level has, a hundredth of the data's range for
most published priors. A chain that ends at a noisier level has more of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VARIANCES", "SamplerVariance", "large_variance", "small_variance"]


def large_variance(alpha: Tensor, sigma: Tensor, data_std: float = 1.0) -> Tensor:
    """Values of v [T] at levels `alpha`, `sigma` [T] of data of standard deviation `data_std` in every direction."""
    return (data_std * sigma).square() / ((data_std * alpha).square() + sigma.square())


def small_variance(alpha: Tensor, sigma: Tensor, data_std: float = 1.0) -> Tensor:
    """Values of v [T] at the levels `alpha`, `sigma` [T] of a chain: zero, but at the last of them."""
    variance = torch.zeros_like(sigma)
    variance[-1] = large_variance(alpha, sigma, data_std)[-1]
    return variance


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerVariance:
    """One of them by name; called with (alpha, sigma) it is `Prior`'s `denoising_variance`."""

    name: str
    """small or large."""
    data_std: float
    """h, in the units of x."""

    def __post_init__(self) -> None:
        if self.name not in VARIANCES:
            raise ValueError(f"unknown variance {self.name!r} of a sampler; expected one of {', '.join(VARIANCES)}")
        if not (self.data_std > 0 and math.isfinite(self.data_std)):
            raise ValueError(f"data_std must be positive, got {self.data_std}")

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[T] float64 v at the levels `alpha`, `sigma` [T] of a chain."""
        return VARIANCES[self.name](alpha.double(), sigma.double(), self.data_std)


VARIANCES = {"small": small_variance, "large": large_variance}
