r"""`funnel`: Neal's funnel (Neal 2003), a neck whose width changes by orders of magnitude; log Z = 0.

x_0 ~ N(0, 9),    x_i | x_0 ~ N(0, exp(x_0)),  i = 1..D-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.energy import energy_problem
from envs.problem import InverseProblem
from envs.registry import register

__all__ = ["Funnel", "funnel"]

NECK_VARIANCE = 9.0


@dataclass(frozen=True, slots=True, eq=False)
class Funnel:
    """The density, and exact draws of it."""

    dim: int
    """D."""
    log_partition: float = 0.0
    """The density is normalised."""

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log density of x = `value` [N, D], nats."""
        neck, rest = value[:, 0], value[:, 1:]
        log_neck = -0.5 * neck.square() / NECK_VARIANCE - 0.5 * math.log(2 * math.pi * NECK_VARIANCE)
        scaled = rest.square().sum(1) * torch.exp(-neck)
        return log_neck - 0.5 * scaled - 0.5 * (self.dim - 1) * (neck + math.log(2 * math.pi))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] exact draws, float64."""
        noise = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
        neck = math.sqrt(NECK_VARIANCE) * noise[:, :1]
        return torch.cat([neck, torch.exp(0.5 * neck) * noise[:, 1:]], 1)

    @property
    def mean(self) -> Tensor:
        """[D] zeros."""
        return torch.zeros(self.dim, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        """[D] 9, then E exp(x_0) = exp(4.5)."""
        wide = torch.full((self.dim,), math.exp(0.5 * NECK_VARIANCE), dtype=torch.float64)
        wide[0] = NECK_VARIANCE
        return wide


@register("funnel")
def funnel(
    *, dim: int = 10, num_steps: int = 100, schedule: str = "vp-cosine-zero-snr", base_std: float = 3.0
) -> InverseProblem:
    """`dim` dimensions; the last ones have heavy tails, of variance 90."""
    if dim < 2:
        raise ValueError(f"funnel needs dim >= 2, got {dim}")
    exact = Funnel(dim)
    return energy_problem(
        "funnel", exact.log_prob, dim, base_std=base_std, num_steps=num_steps, schedule=schedule, exact=exact
    )
