r"""Distances between samples, and between class probabilities.

Exact optimal transport of two samples of n points each is an assignment problem:

    W2(a, b)^2 = min over permutations s of (1/n) sum_i |a_i - b_s(i)|^2.

The sliced distance replaces it by sorting along random directions theta (Bonneel et al. 2015):

    SW2(a, b)^2 = E_theta W2(a . theta, b . theta)^2,   which is |v|^2 / d for two samples that differ by a shift v.

Neither is zero between two samples of the same distribution, W2 in many dimensions least of all; `floor` says how far
apart those are, and only what exceeds it is an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from envs.problem import ExactPosterior

__all__ = ["class_l1", "floor", "sliced_wasserstein2", "wasserstein2"]


def sliced_wasserstein2(
    a: Tensor, b: Tensor, projections: int = 256, generator: torch.Generator | None = None
) -> float:
    """Sliced 2-Wasserstein distance of two equally large samples [N, *D], in the units of x."""
    left, right = _paired(a, b)
    direction = torch.randn(left.shape[1], projections, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=0)
    difference = (left @ direction).sort(dim=0).values - (right @ direction).sort(dim=0).values
    return float(difference.square().mean().sqrt())


def wasserstein2(a: Tensor, b: Tensor) -> float:
    """Exact 2-Wasserstein distance of two equally large samples [N, *D], in the units of x.

    Time grows as N^3: about 0.1 s for N = 500, up to 10 s for the N = 2,000 at which toy results are published.
    """
    left, right = _paired(a, b)
    cost = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** 0.5)


def class_l1(p: Tensor, q: Tensor) -> float:
    """sum_c |p_c - q_c| of two probability vectors [C]: 0 if equal, 2 if disjoint."""
    if p.shape != q.shape or p.ndim != 1:
        raise ValueError(f"class probabilities must be two vectors of one length, got {[*p.shape]} and {[*q.shape]}")
    return float((p.double() - q.double()).abs().sum())


def floor(
    distance: Callable[[Tensor, Tensor], float],
    exact: ExactPosterior,
    count: int,
    generator: torch.Generator | None = None,
) -> float:
    """`distance` between two independent exact samples of `count` points: what a perfect posterior would score."""
    return distance(exact.sample(count, generator), exact.sample(count, generator))


def _paired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples as float64 [N, D] on the CPU."""
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"samples must be two tensors [N, *D] of one shape, got {[*a.shape]} and {[*b.shape]}")
    return a.detach().cpu().double().flatten(1), b.detach().cpu().double().flatten(1)
