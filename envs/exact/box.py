r"""Exact posterior of x uniform in a box under y = x + noise, the noise of one size or a mixture of sizes.

For noise ~ sum_c w_c N(0, s_c^2 I) the posterior is a mixture of Gaussians N(y, s_c^2 I) cut to the box, and

    Z = prod_i (high_i - low_i)^-1 sum_c w_c prod_i [Phi((high_i - y_i) / s_c) - Phi((low_i - y_i) / s_c)].
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.box_denoiser import cut_moments, log_interval

__all__ = ["BoxPosterior"]


class BoxPosterior:
    """An exact posterior that is a mixture of Gaussians cut to a box, and its evidence."""

    def __init__(self, low: Tensor, high: Tensor, measurement: Tensor, noise_std: Tensor, weights: Tensor) -> None:
        """`low`, `high` and `measurement` [D]; `noise_std` s_c and `weights` w_c [C]."""
        self._low, self._high, self._centre = low.double(), high.double(), measurement.double()
        self._std = noise_std.double()
        self._first, self._second = ((edge - self._centre) / self._std[:, None] for edge in (self._low, self._high))
        self._log_mass = log_interval(self._first, self._second)  # [C, D]
        log_weight = weights.double().log() + self._log_mass.sum(1)
        total = log_weight.logsumexp(0)
        self._weights = (log_weight - total).exp()
        self.log_partition = float(total - (self._high - self._low).log().sum())
        """log p(y), nats."""

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance [C, D] of each Gaussian within the box."""
        return cut_moments(self._centre, self._std[:, None], self._low, self._high)

    @property
    def mean(self) -> Tensor:
        """[D] posterior mean."""
        return self._weights @ self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """[D] posterior variance of every element of x."""
        mean, variance = self._moments()
        return self._weights @ (variance + mean.square()) - self.mean.square()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] exact draws, float64: the inverse of the distribution function."""
        row = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        place = torch.rand(count, len(self._centre), generator=generator, dtype=torch.float64)
        # The inverse is taken in the tail on the left, where small probabilities are not rounded.
        mirrored = (self._first + self._second > 0)[row]
        outer = torch.where(mirrored, -self._second[row], self._first[row])
        tail = torch.special.log_ndtr(outer).exp() + place * self._log_mass[row].exp()
        normal = torch.special.ndtri(tail)
        drawn = self._centre + self._std[row, None] * torch.where(mirrored, -normal, normal)
        return drawn.clamp(self._low, self._high)
