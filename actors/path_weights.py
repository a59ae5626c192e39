"""What the moves of `actors.path_search` are accepted by: the weight of a suffix, of a prefix, and a ratio of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_acceptance", "prefix_log_weight", "suffix_log_weight"]


def suffix_log_weight(log_ratio: Tensor, log_likelihood: Tensor, beta: float, log_start: Tensor) -> Tensor:
    """[N] float64 log w of a suffix from `log_ratio` [N, K], log q - log p of its transitions.

    `log_start` [N, K] is the same of the chain at which the way to the posterior begins: 0 if that is the prior.
    """
    tempered = beta * log_likelihood.double() if beta > 0 else 0.0  # and not 0 * -inf
    return tempered + (1 - beta) * log_start.double().sum(1) - log_ratio.double().sum(1)


def prefix_log_weight(
    log_base: Tensor, log_prior: Tensor, log_noising: Tensor, beta: float, log_start: Tensor
) -> Tensor:
    """[N] float64 log w of a prefix from log p(s_0) [N], both directions' transitions and `log_start` [N, K]."""
    target = log_base.double() + log_prior.double().sum(1) + (1 - beta) * log_start.double().sum(1)
    return target - log_noising.double().sum(1)


def log_acceptance(new: Tensor, old: Tensor) -> Tensor:
    """[N] log probability of accepting a proposal of log weight `new` [N] in the place of `old` [N].

    A weight that is not finite (outside the likelihood's support, or not a number) counts as zero: it is never
    accepted, and given up for any other.
    """
    old = torch.where(torch.isfinite(old), old, -math.inf)
    return torch.where(torch.isfinite(new), new - old, -math.inf).clamp_max(0.0)
