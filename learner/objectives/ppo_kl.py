r"""`ppo_kl`: proximal policy optimisation of the reward less its KL penalty (Schulman et al. 2017, arXiv 1707.06347;
for diffusion models Black et al. 2024, 2305.13301, and Fan et al. 2023, 2305.16381).

    loss = max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),    rho = q(tau) / b(tau),    A = c - f_b(tau),
    f_b(tau) = sum_k [log b - log p] - beta log p(y | x),

over whole trajectories, b being the policy that made them and c the mean of f_b over the trajectories of the same
measurement. At q = b its gradient is that of the KL divergence; a trajectory of which q has moved away by more than
eps, in the direction its advantage asks for, is left alone. So what is old adds nothing: it is for fresh
trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.batch import PathBatch
from learner.objectives.base import RatioObjective
from learner.objectives.vargrad import group_mean

__all__ = ["ProximalPolicyKL"]


class ProximalPolicyKL(RatioObjective):
    """Clipped surrogate."""

    def __init__(self, clip_range: float) -> None:
        """`clip_range` is eps."""
        super().__init__()
        self.clip_range = clip_range

    def evaluate(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """See `RatioObjective.evaluate`."""
        total, reward = log_ratio.double().sum(1), beta * batch.log_likelihood.double()
        # A path that stands for nothing, as it left a start of likelihood zero, has b = inf: nothing is to be imitated.
        known = torch.isfinite(batch.log_behaviour_ratio)
        behaviour = torch.where(known, batch.log_behaviour_ratio.double(), total.detach())
        centre = group_mean(behaviour - reward, known.double(), batch.group)
        advantage = torch.where(known, centre[batch.group] - behaviour + reward, 0.0)
        ratio = (total - behaviour).clamp_max(50.0).exp()  # a ratio that overflows has no use for more
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        return loss.mean(), self._centred(total.detach() - reward, batch.group)

    def _centred(self, value: Tensor, group: Tensor) -> Tensor:
        return value - group_mean(value, torch.ones_like(value), group)[group]
