"""What a population of paths is judged and renewed by: effective sample size, systematic draws, correlation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correlation", "effective_fraction", "systematic"]


def effective_fraction(log_weight: Tensor) -> float:
    """Effective sample size of weights with the logarithms [N], as a fraction: (sum w)^2 / (N sum w^2)."""
    log_weight = log_weight.double()
    return float((2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp() / len(log_weight))


def systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """[N] rows, each drawn N w times on average (systematic resampling: the counts are off by less than one)."""
    count = len(weights)
    points = (
        torch.arange(count, dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)
    ) / count
    cumulative = weights.double().cumsum(0)
    return torch.searchsorted(cumulative / cumulative[-1], points).clamp_max(count - 1)


def correlation(before: Tensor, after: Tensor) -> float:
    """Of two [N, D], pooled over D: 1 - E|after - before|^2 / (sum of both's variances)."""
    before, after = before.double(), after.double()
    spread = float((before.var(0) + after.var(0)).sum())
    return 1 - float((after - before).square().mean(0).sum()) / max(spread, 1e-300)
