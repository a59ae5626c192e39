r"""Exact posterior of a stationary Gaussian field under a periodic blur and white noise.

Everything is diagonal in frequency: with K(f) the blur's transfer function and P(f) the field's power,

    V = |K|^2 P + sigma^2,   E[x_f | y] = P K* y_f / V,   Var(x_f | y) = P sigma^2 / V,   y_f ~ N(0, V).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.field_denoiser import hartley
from envs.operators import Convolution

__all__ = ["FieldPosterior"]


class FieldPosterior:
    """The posterior of a field x [1, H, W], and its evidence; float64."""

    def __init__(self, power: Tensor, blur: Convolution, noise_std: float, measurement: Tensor) -> None:
        """`power` P [H, W] of the field, `blur` periodic, `measurement` y [1, H, W]."""
        power, seen = power.double().cpu(), measurement.double().cpu()
        transfer = blur.spectrum().values.cpu().reshape(power.shape)  # |K|^2
        evidence = transfer * power + noise_std**2
        self._variance = power * noise_std**2 / evidence
        # A^T V^-1 y is a convolution as well, and P one with the field's correlation.
        self._mean = hartley(power * hartley(blur.adjoint(hartley(hartley(seen) / evidence)[None])[0]))
        square = hartley(seen).square() / evidence
        self.log_partition = -0.5 * float(square.sum() + evidence.log().sum() + power.numel() * math.log(2 * math.pi))
        """log p(y), nats."""

    @property
    def mean(self) -> Tensor:
        """[1, H, W] posterior mean."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """[1, H, W] posterior variance, the same in every pixel."""
        return torch.full_like(self._mean, float(self._variance.mean()))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, 1, H, W] exact draws."""
        noise = torch.randn(count, *self._mean.shape, generator=generator, dtype=torch.float64)
        return self._mean + hartley(self._variance.sqrt() * noise)
