r"""`vargrad`: the residual with log Z profiled out, per measurement.

    delta_i - c(y_i),    c(y) = argmin over c of the sum over {j: y_j = y} of loss(delta_j - c),

detached. For the square loss c is the mean, and this is the log-variance loss (Richter et al. 2020, arXiv 2010.10436;
per measurement as in Sendera et al. 2024, 2402.05098, section 3.3). For Huber's loss c is Huber's location, so that
a few trajectories far from the posterior (prior rollouts, say) do not shift the centre of all others. log Z cancels,
nothing has to be learned for it, and since c is a minimum the gradient through it is zero. For the other losses c is
the mean: clipped has no one minimum, and that of the shifted cosh follows the trajectories that are furthest off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.batch import PathBatch
from learner.objectives.base import Balance

__all__ = ["VarGrad", "group_mean"]

ITERATIONS = 30  # of reweighted means; the location is then stationary to well below the spread of the residuals


class VarGrad(Balance):
    """delta less the centre of its measurement."""

    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """See `Balance.residual`."""
        delta = log_ratio - beta * batch.log_likelihood.double()
        group = batch.group
        return delta - self._centre(delta.detach(), group)[group]

    def _centre(self, value: Tensor, group: Tensor) -> Tensor:
        """[G] c of each group."""
        if self.shape.shape != "huber":
            return group_mean(value, torch.ones_like(value), group)
        # From the median, as from the mean it would take many steps where half of the batch is far off.
        centre = _group_median(value, group)
        for _ in range(ITERATIONS):
            distance = (value - centre[group]).abs()
            weight = (self.shape.scale / distance.clamp_min(1e-12)).clamp_max(1.0)
            centre = group_mean(value, weight, group)
        return centre


def group_mean(value: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """[G] weighted mean of the `value` [B] of each `group` [B], numbered 0..G-1; 0 for an empty one."""
    groups = int(group.max()) + 1
    total = value.new_zeros(groups).index_add(0, group, weight * value)
    return total / value.new_zeros(groups).index_add(0, group, weight).clamp_min(1e-300)


def _group_median(value: Tensor, group: Tensor) -> Tensor:
    """[G] lower median of the `value` [B] of each group, 0 for an empty one."""
    order = value.argsort()
    order = order[group[order].argsort(stable=True)]  # by group, and by value within it
    count = torch.bincount(group)
    middle = count.cumsum(0) - count + (count - 1).clamp_min(0) // 2
    median = value[order][middle.clamp_max(len(value) - 1)]
    return torch.where(count > 0, median, torch.zeros_like(median))
