r"""`reinforce_kl`: the policy gradient of the reward less its KL penalty (Williams 1992; as a rival of relative
trajectory balance Deleu et al. 2025, arXiv 2509.01632).

    J = E_q[f],    f(tau) = sum_k [log q - log p] - beta log p(y | x),    KL(q || posterior) = J + log Z,
    dJ/dtheta = E_b[ w(tau) (f(tau) - c) dlog q(tau)/dtheta ],    w = q / b.

The reward is log p(y | x), not p(y | x), and the penalty the KL of whole paths: with these the maximum is the
posterior. c is the mean f of the other trajectories of the same measurement, weighted, so it takes variance and adds
no bias. On trajectories of q itself w = 1, and this is the gradient of VarGrad. On others w is the true importance
weight, cut at `cap`: with it an old trajectory counts little, without it (w = 1) the fixed point would be another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.batch import PathBatch
from learner.objectives.base import RatioObjective

__all__ = ["ReinforceKL"]


class ReinforceKL(RatioObjective):
    """Score-function gradient of KL(q || posterior)."""

    def __init__(self, cap: float) -> None:
        """`cap` is the largest importance weight."""
        super().__init__()
        self.cap = cap

    def evaluate(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """See `RatioObjective.evaluate`; the loss is a surrogate, only its gradient means something."""
        total = log_ratio.double().sum(1)
        cost = total.detach() - beta * batch.log_likelihood.double()
        weight = (total.detach() - batch.log_behaviour_ratio.double()).exp().clamp_max(self.cap)
        residual = cost - self._others(cost, weight, batch.group)
        return (weight * residual * total).mean(), residual

    def _others(self, cost: Tensor, weight: Tensor, group: Tensor) -> Tensor:
        """[B] weighted mean of `cost` over the other trajectories of the same measurement, 0 where there is none."""

        def of_others(value: Tensor) -> Tensor:
            return value.new_zeros(len(value)).index_add(0, group, value)[group] - value

        total = of_others(weight)
        # Rounding leaves a trace of the trajectory's own weight where the others have none.
        enough = total > 1e-9 * weight
        return torch.where(enough, of_others(weight * cost) / total.clamp_min(1e-300), torch.zeros_like(cost))
