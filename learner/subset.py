r"""K of the T transitions of each trajectory, with weights under which a sum over the path is right on average.

sum_k g_ik  =  E[ sum over the drawn k of  g_ik f_ik ],

uniform    K steps at equal distances from a random start: every step has the probability K / T, no path has one
           twice, f = T / K;
share      K independent draws from  pi_ik = (1 - e) |l_ik| / sum_j |l_ij| + e / T,  f = 1 / (K pi_ik): the
           transitions at which q and p differ most, with e = 1/2 so that no weight exceeds 2 T / K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["DrawBy", "StepSubset", "equally_spaced", "spread_by"]

DrawBy = Literal["uniform", "share"]
UNIFORM_SHARE = 0.5  # e


@dataclass(frozen=True, slots=True)
class StepSubset:
    """How the transitions of one update are drawn."""

    steps_per_path: int
    """K."""
    by: DrawBy
    """uniform or share."""
    seed: int
    """Another one for every update."""

    def draw(self, log_ratio: Tensor, fresh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(steps [B, K], factors f [B, K] float64) for `log_ratio` [B, T]; uniform where it is not known (`fresh`)."""
        count, steps = log_ratio.shape
        generator = torch.Generator(log_ratio.device).manual_seed(self.seed)
        even = equally_spaced(count, steps, self.steps_per_path, generator)
        factor = torch.full(even.shape, steps / self.steps_per_path, dtype=torch.float64)
        if self.by == "uniform":
            return even, factor
        size = log_ratio.detach().abs().double()
        share = size / size.sum(1, keepdim=True).clamp_min(1e-300)
        probability = (1 - UNIFORM_SHARE) * share + UNIFORM_SHARE / steps
        probability = probability / probability.sum(1, keepdim=True)  # one where all sizes are zero
        drawn = torch.multinomial(probability, self.steps_per_path, replacement=True, generator=generator)
        weighted = 1 / (self.steps_per_path * probability.gather(1, drawn))
        if fresh is not None:
            drawn = torch.where(fresh[:, None], even, drawn)
            weighted = torch.where(fresh[:, None], factor, weighted)
        return drawn, weighted


def equally_spaced(count: int, steps: int, chosen: int, generator: torch.Generator) -> Tensor:
    """[count, chosen] different steps of `steps` a path, each step with the probability chosen / steps."""
    start = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return ((torch.arange(chosen) + start) * (steps / chosen)).long().clamp_max(steps - 1)


def spread_by(weight: Tensor, count: int, chosen: int, generator: torch.Generator) -> Tensor:
    """[count, chosen] steps of each path, step k `chosen` `weight`_k / sum `weight` times on average; `weight` [T].

    Systematic: of one number a path, so that its steps are as far apart as their weights let them.
    """
    reached = weight.double().cumsum(0)
    start = torch.rand(count, 1, generator=generator, dtype=torch.float64, device=generator.device)
    point = (torch.arange(chosen, device=generator.device) + start) / chosen
    return torch.searchsorted(reached / reached[-1], point, right=True).clamp_max(len(weight) - 1)
