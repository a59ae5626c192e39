r"""Exact posteriors of x ~ N(0, I) given that an event happened: the log evidence is that of the event's probability.

Half-space, direction a of length one:     a . x >= b,    Z = Phi(-b),

and x is a normal number cut off at b along a, and as before across. Four branches, the series system of structural
reliability in the plane (Waarts 2000; Echard et al. 2011, Structural Safety 33, 145, with k = 7), in the coordinates
u = (x_1 + x_2) / sqrt(2) and v = (x_1 - x_2) / sqrt(2), which are independent and standard normal too:

    |u| >= b + v^2 / 5    or    |v| >= c = (7 / sqrt(2) + b - 3) / sqrt(2),

    Z = 2 Phi(-c) + 2 int_{-c}^{c} phi(v) Phi(-(b + v^2 / 5)) dv,

2.2228e-3 at b = 3, published as 2.233e-3 from a million draws.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import log_ndtr
from torch import Tensor

__all__ = ["CURVATURE", "BranchPosterior", "HalfSpacePosterior", "branch_edge"]

CURVATURE = 0.2
CELLS = 20_000  # of the grid that v is drawn from: a place within 4e-4 of where it would be


def branch_edge(level: float) -> float:
    """c, where the third and the fourth branch begin."""
    return (7 / math.sqrt(2) + level - 3) / math.sqrt(2)


def _log_density(value: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(-0.5 * np.square(value) - 0.5 * math.log(2 * math.pi))


def _inverse_mill(level: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """phi(b) / Phi(-b), the mean of a normal number above b."""
    return np.asarray(np.exp(_log_density(level) - log_ndtr(-np.asarray(level))))


def _above(level: Tensor, generator: torch.Generator | None) -> Tensor:
    """A standard normal number above each `level` [N], by the inverse of the tail, in float64."""
    share = torch.rand(level.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    log_tail = torch.special.log_ndtr(-level) + share.log()
    return -torch.special.ndtri(log_tail.exp())


class HalfSpacePosterior:
    """X ~ N(0, I) given a . x >= b."""

    def __init__(self, direction: Tensor, level: float) -> None:
        """`direction` a [D], of length one; `level` b, standard deviations."""
        self._direction, self._level = direction.double(), level
        self.log_partition = float(log_ndtr(-level))
        """Log p(a . x >= b), nats."""
        self._mean = float(_inverse_mill(level))

    @property
    def mean(self) -> Tensor:
        """[D] posterior mean."""
        return self._mean * self._direction

    @property
    def variance(self) -> Tensor:
        """[D] posterior variance of every element of x."""
        along = 1 + self._level * self._mean - self._mean**2
        return 1 + (along - 1) * self._direction.square()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] exact draws, float64."""
        drawn = torch.randn(count, len(self._direction), generator=generator, dtype=torch.float64)
        along = _above(torch.full((count,), self._level, dtype=torch.float64), generator)
        return drawn + (along - drawn @ self._direction)[:, None] * self._direction


class BranchPosterior:
    """X ~ N(0, I) in the plane given one of the four branches."""

    def __init__(self, level: float) -> None:
        """`level` b, standard deviations."""
        self._level, self._edge = level, branch_edge(level)
        edge = self._edge

        def inside(power: int) -> float:
            """Integral of phi(v) P(|u| >= t) v^power, over |v| < c."""
            return 2 * quad(lambda v: v**power * self._inner(v), 0, edge, epsabs=0, epsrel=1e-11)[0]

        def spread(v: float) -> float:
            """phi(v) E[u^2; |u| >= t]."""
            t = level + CURVATURE * v * v
            return float(self._inner(v) * (1 + t * _inverse_mill(t)))

        outside = 2 * float(np.exp(log_ndtr(-edge)))
        total = inside(0) + outside
        self.log_partition = math.log(total)
        """Log p(event), nats."""
        square_v = inside(2) + outside * (1 + edge * float(_inverse_mill(edge)))
        square_u = 2 * quad(spread, 0, edge, epsabs=0, epsrel=1e-11)[0] + outside
        self._variance = 0.5 * (square_u + square_v) / total
        self.branches = torch.tensor([inside(0) / 2, inside(0) / 2, outside / 2, outside / 2]).double() / total
        """[4] probability of u > 0 and of u < 0 with |v| < c, of v > c and of v < -c."""

    def _inner(self, v: float | NDArray[np.float64]) -> float:
        """phi(v) P(|u| >= t(v))."""
        return 2 * np.exp(_log_density(v) + log_ndtr(-(self._level + CURVATURE * np.square(v))))

    @property
    def mean(self) -> Tensor:
        """[2] posterior mean: zero, as the branches are symmetric."""
        return torch.zeros(2, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        """[2] posterior variance of either element of x."""
        return torch.full((2,), self._variance, dtype=torch.float64)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, 2] draws, float64; of the first two branches v is from a grid of 20,000 cells."""
        branch = torch.multinomial(self.branches, count, replacement=True, generator=generator)
        width = 2 * self._edge / CELLS
        middle = -self._edge + width * (torch.arange(CELLS, dtype=torch.float64) + 0.5)
        cumulative = torch.from_numpy(np.asarray(self._inner(middle.numpy()))).cumsum(0)
        place = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
        cell = torch.searchsorted(cumulative, place).clamp_max(CELLS - 1)
        v = middle[cell] + width * (torch.rand(count, generator=generator, dtype=torch.float64) - 0.5)
        u = _above(self._level + CURVATURE * v.square(), generator)
        beyond = _above(torch.full((count,), self._edge, dtype=torch.float64), generator)
        free = torch.randn(count, generator=generator, dtype=torch.float64)
        sign = 1.0 - 2.0 * (branch % 2)
        u, v = torch.where(branch < 2, sign * u, free), torch.where(branch < 2, v, sign * beyond)
        return torch.stack([u + v, u - v], 1) / math.sqrt(2)
