r"""Whether Markov chains have mixed: populations of chains that never met are compared with each other.

For P populations of draws, with population means m_p and the variance v_p of the draws within each,

    B = var_p(m_p),    W = mean_p(v_p),    R^ = sqrt(1 + B / W),

the nested R^ of Margossian et al. 2024 (arXiv 2110.13017), made for many short chains. One population of M independent
draws has B / W = 1 / M, so R^ <= 1.01 asks for about 50 a population; populations that disagree about the weight of a
mode have a large R^ however long each has run. The mean over all of them has variance B / P, so together they are worth

    ESS = P W / B

independent draws, pooled over quantities here, as each by itself has no more than P - 1 degrees of freedom.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["nested_r_hat", "population_effective_sample_size"]


def nested_r_hat(draws: Tensor) -> Tensor:
    """[Q] R^ of each quantity in `draws` [P, M, Q]: P populations of M draws; 1 for a quantity that never varies."""
    between, within = _variances(draws)
    ratio = torch.where(within > 0, between / within.clamp_min(1e-300), torch.where(between > 0, math.inf, 0.0))
    return (1 + ratio).sqrt()


def population_effective_sample_size(draws: Tensor) -> float:
    """Independent draws that `draws` [P, M, Q] are worth for the means of their quantities, at most P M."""
    between, within = _variances(draws)
    varying = within > 0
    if not bool(varying.any()):
        return 0.0
    ratio = float((between[varying] / within[varying]).mean())
    count = draws.shape[0] * draws.shape[1]
    return min(draws.shape[0] / ratio, count) if ratio > 0 else float(count)


def _variances(draws: Tensor) -> tuple[Tensor, Tensor]:
    """B and W [Q], float64."""
    if draws.ndim != 3 or draws.shape[0] < 2 or draws.shape[1] < 2:
        raise ValueError(
            f"mixing needs draws [P, M, Q] of P >= 2 populations with M >= 2 draws, got {tuple(draws.shape)}"
        )
    values = draws.double()
    return values.mean(1).var(0), values.var(1).mean(0)
