r"""The exact denoiser of x that is uniform in a box.

Given s = alpha x + sigma eps, each x_i is N(mu, tau^2) cut to [low, high], mu = s_i / alpha and tau = sigma / alpha.
With a = (low - mu) / tau, b = (high - mu) / tau and Z = Phi(b) - Phi(a),

    x^(s) = mu + tau (phi(a) - phi(b)) / Z,
    Var(x_i | s) = tau^2 [1 + (a phi(a) - b phi(b)) / Z - ((phi(a) - phi(b)) / Z)^2],    dx^/ds = alpha Var / sigma^2.

These are differences of numbers that grow with tau. Where tau is larger than the box, the density of x given s is so
flat that Gauss-Legendre quadrature is exact to rounding, and takes their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.kernel import expand

__all__ = ["BoxDenoiser", "cut_moments", "log_interval"]

NODES, FEW_NODES = 64, 16  # of the quadratures over x and the noise, and over x where its density is flat


class BoxDenoiser(nn.Module):
    """Exact denoiser of x uniform on [low, high] in every dimension."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """`low` and `high` [D]."""
        super().__init__()
        if low.shape != high.shape or low.ndim != 1 or not bool((low < high).all()):
            raise ValueError(f"a box needs low < high, both [D], got {low.tolist()} and {high.tolist()}")
        self.register_buffer("low", low.double())
        self.register_buffer("high", high.double())

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `diffusion.denoiser.Denoiser`."""
        return self._moments(state, alpha, sigma)[0].to(state)

    def pull_back(
        self, state: Tensor, alpha: Tensor, sigma: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(x^, J^T v), see `diffusion.prior.Prior.pull_back`: J is diagonal."""
        denoised, variance = self._moments(state, alpha, sigma)
        denoised = denoised.to(state)
        slope = variance * (expand(alpha, variance) / expand(sigma, variance).square())
        return denoised, slope.to(state) * cotangent(denoised)

    def _moments(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [N, D] float64 of x given s = `state` [N, D]."""
        state = state.double()
        alpha, sigma = expand(alpha, state).double(), expand(sigma, state).double()
        flat = alpha * (self.high - self.low) < sigma  # [N, D]: sides may be of very different lengths
        if bool(flat.all()):
            return self._by_quadrature(state, alpha, sigma)
        mean, variance = self._in_closed_form(state, alpha, sigma)
        if bool(flat.any()):
            few_mean, few_variance = self._by_quadrature(state, alpha, sigma)
            mean, variance = torch.where(flat, few_mean, mean), torch.where(flat, few_variance, variance)
        return mean, variance

    def _by_quadrature(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        place, share = (torch.from_numpy(value).to(state) for value in np.polynomial.legendre.leggauss(FEW_NODES))
        clean = self.low + 0.5 * (place[:, None, None] + 1) * (self.high - self.low)
        weight = share[:, None, None] * (-0.5 * ((state - alpha * clean) / sigma).square()).softmax(0)
        # Of the softmax the shares are left out, so it is not yet of sum one.
        weight = weight / weight.sum(0)
        mean = (weight * clean).sum(0)
        return mean, (weight * (clean - mean).square()).sum(0)

    def _in_closed_form(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = cut_moments(state / alpha, sigma / alpha, self.low, self.high)
        return mean.clamp(self.low, self.high), variance.clamp_min(0)

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log density of x = `value` [N, D], float64; -inf outside the box."""
        inside = ((value >= self.low) & (value <= self.high)).all(1)
        return torch.where(inside, -(self.high - self.low).log().sum(), -torch.inf)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] exact draws of x, float64."""
        drawn = torch.rand(count, len(self.low), generator=generator, dtype=torch.float64)
        return self.low + (self.high - self.low) * drawn

    def denoising_variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[K] E |x - x^|^2 / D at levels `alpha`, `sigma` [K], by quadrature over x and the noise."""
        place, share = (torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(NODES))
        noise, weight = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(NODES))
        clean = (self.low + 0.5 * (place[:, None, None] + 1) * (self.high - self.low)).expand(-1, NODES, -1)
        weights = (share[:, None] * weight / (2 * math.sqrt(2 * math.pi))).flatten()
        errors = []
        for level, spread in zip(alpha.double(), sigma.double(), strict=True):
            state = (level * clean + spread * noise[:, None]).reshape(-1, len(self.low))
            _, variance = self._moments(state, level.expand(len(state)), spread.expand(len(state)))
            errors.append(weights @ variance.mean(1))
        return torch.stack(errors)


def log_interval(first: Tensor, second: Tensor) -> Tensor:
    """log(Phi(second) - Phi(first)) for first < second, without rounding however far to either side both are."""
    # Phi(b) - Phi(a) = Phi(-a) - Phi(-b).
    mirrored = first + second > 0
    near, far = torch.where(mirrored, -first, second), torch.where(mirrored, -second, first)
    log_near = torch.special.log_ndtr(near)
    return log_near + (-torch.expm1(torch.special.log_ndtr(far) - log_near)).log()


def cut_moments(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of N(`mean`, `std`^2) cut to [`low`, `high`], all broadcast; differences of terms in `std`."""
    first, second = (low - mean) / std, (high - mean) / std
    log_mass = log_interval(first, second) + 0.5 * math.log(2 * math.pi)
    left, right = ((-0.5 * edge.square() - log_mass).exp() for edge in (first, second))
    shift = left - right
    return mean + std * shift, std.square() * (1 + first * left - second * right - shift.square())
