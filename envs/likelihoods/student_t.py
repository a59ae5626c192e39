r"""Noise with outliers: every element of y off by a Student-t number.

y = A(x) + scale t,    p(t) = Gamma((d + 1) / 2) / (Gamma(d / 2) sqrt(d pi)) (1 + t^2 / d)^(-(d + 1) / 2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.likelihoods.base import AutogradLikelihood, noiseless
from envs.operators import ForwardOperator

__all__ = ["StudentTLikelihood"]


class StudentTLikelihood(AutogradLikelihood):
    """Robust: an outlier counts as its logarithm, not as its square."""

    def __init__(self, operator: ForwardOperator, scale: float, degrees_of_freedom: float = 3.0) -> None:
        """`degrees_of_freedom` d: 1 is Cauchy, and infinitely many are Gaussian; above 2 the variance is finite."""
        super().__init__()
        for name, given in (("scale", scale), ("degrees_of_freedom", degrees_of_freedom)):
            if not (given > 0 and math.isfinite(given)):
                raise ValueError(f"{name} must be positive and finite, got {given}")
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)
        self.scale, self.degrees_of_freedom = float(scale), float(degrees_of_freedom)

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        degrees = self.degrees_of_freedom
        residual = ((measurement.to(value) - noiseless(self.operator, value)) / self.scale).flatten(1)
        constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
        constant -= 0.5 * math.log(degrees * math.pi) + math.log(self.scale)
        return (constant - 0.5 * (degrees + 1) * (residual.square() / degrees).log1p()).sum(1)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`: a normal number over the root of a chi-squared one per degree of freedom."""
        clean = noiseless(self.operator, value)
        normal = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        shape = torch.full_like(clean, 0.5 * self.degrees_of_freedom)
        chi_squared = 2 * torch._standard_gamma(shape, generator=generator)
        return clean + self.scale * normal * (self.degrees_of_freedom / chi_squared).sqrt()
