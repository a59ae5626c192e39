r"""`vargrad`: the residual with log Z profiled out, per measurement.

    delta_i - c(y_i),    c(y) = argmin over c of the sum over {j: y_j = y} of loss(delta_j - c),

detached. For the square loss c is the mean, and this is the log-variance loss (Richter et al. 2020, arXiv 2010.10436;
per measurement as in Sendera et al. 2024, 2402.05098, section 3.3). For Huber's loss c is Huber's location, so that
a few trajectories far from the posterior (prior rollouts, say) do not shift the centre of all others. log Z cancels,
nothing has to be learned for it, and since c is a minimum the gradient through it is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.rtb import rtb

__all__ = ["vargrad"]

ITERATIONS = 30  # of reweighted means; the location is then stationary to well below the spread of the residuals


def vargrad(
    log_ratio: Tensor,
    log_likelihood: Tensor,
    log_partition: Tensor,
    group: Tensor,
    beta: float = 1.0,
    huber: float | None = None,
) -> Tensor:
    """[B] float64 centred residual of each trajectory; as `rtb`, `log_partition` [M] only telling the number M.

    `huber` is the loss's c, None for the square.
    """
    residual = rtb(log_ratio, log_likelihood, torch.zeros_like(log_partition), group, beta)
    value, groups = residual.detach(), len(log_partition)
    if huber is None:
        return residual - _group_mean(value, torch.ones_like(value), group, groups)[group]
    # From the median, as from the mean it would take many steps where half of the batch is far off.
    centre = _group_median(value, group, groups)
    for _ in range(ITERATIONS):
        distance = (value - centre[group]).abs()
        weight = (huber / distance.clamp_min(1e-12)).clamp_max(1.0)
        centre = _group_mean(value, weight, group, groups)
    return residual - centre[group]


def _group_mean(value: Tensor, weight: Tensor, group: Tensor, groups: int) -> Tensor:
    total = value.new_zeros(groups).index_add(0, group, weight * value)
    return total / value.new_zeros(groups).index_add(0, group, weight).clamp_min(1e-300)


def _group_median(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] lower median of the `value` [B] of each group, 0 for an empty one."""
    order = value.argsort()
    order = order[group[order].argsort(stable=True)]  # by group, and by value within it
    count = torch.bincount(group, minlength=groups)
    middle = count.cumsum(0) - count + (count - 1).clamp_min(0) // 2
    median = value[order][middle.clamp_max(len(value) - 1)]
    return torch.where(count > 0, median, torch.zeros_like(median))
