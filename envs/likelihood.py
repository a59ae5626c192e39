r"""Likelihoods p(y | x), always normalised in y, so that log Z = log p(y) is the evidence.

Gaussian noise of standard deviation sigma on m measured numbers:

    log p(y | x) = -|y - A(x)|^2 / (2 sigma^2) - m log sigma - (m / 2) log(2 pi).
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from envs.operators import ForwardOperator, LinearOperator

__all__ = ["DifferentiableLikelihood", "GaussianLikelihood", "Likelihood", "LikelihoodError", "SimulableLikelihood"]


class LikelihoodError(ValueError):
    """A likelihood gave something that is no log density of N pairs."""


class Likelihood(Protocol):
    """A log density of the measurement given x."""

    measurement_shape: tuple[int, ...]
    """*Y, the shape of one measurement."""

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N] log p(y | x) in nats for x = `value` [N, *D] and y = `measurement` [N, *Y]."""
        ...


@runtime_checkable
class DifferentiableLikelihood(Protocol):
    """A likelihood that also gives its gradient with respect to x."""

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, *D] gradient of log p(y | x) at x = `value`."""
        ...


@runtime_checkable
class SimulableLikelihood(Protocol):
    """A likelihood that measurements can be drawn from."""

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[N, *Y] a measurement of each x = `value` [N, *D]."""
        ...


class GaussianLikelihood(nn.Module):
    """y = A(x) + sigma * noise."""

    def __init__(self, operator: ForwardOperator, noise_std: float) -> None:
        super().__init__()
        if not (noise_std > 0 and math.isfinite(noise_std)):
            raise ValueError(f"noise_std must be a positive finite standard deviation, got {noise_std}")
        self.operator = operator
        self.noise_std = float(noise_std)
        self.measurement_shape = operator.measurement_shape

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        residual = ((measurement.to(value) - self.operator(value)) / self.noise_std).flatten(1)
        constant = residual.shape[1] * (math.log(self.noise_std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * residual.square().sum(1) - constant

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`; A^T (y - A x) / sigma^2 for a linear operator, autograd otherwise."""
        if isinstance(self.operator, LinearOperator):
            residual = measurement.to(value) - self.operator(value)
            return (self.operator.adjoint(residual) / self.noise_std**2).reshape(value.shape)
        with torch.enable_grad():
            leaf = value.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.log_prob(leaf, measurement).sum(), leaf)
        return gradient

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        clean: Tensor = self.operator(value)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        return clean + self.noise_std * noise
