r"""`mle`: maximum likelihood on paths that are samples of the posterior.

    loss = -(1 / B) sum_i sum_k log q(s_ik+1 | s_ik, y_i) / p(s_ik+1 | s_ik),

whose expectation over exact paths is KL(p(tau | y) || q), but for a constant. Paths of joint simulation are exact at
their own measurement; those that replay draws by importance stand for the posterior at the problem's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.batch import PathBatch
from learner.objectives.base import RatioObjective
from learner.objectives.vargrad import group_mean

__all__ = ["MaximumLikelihood"]


class MaximumLikelihood(RatioObjective):
    """Forward KL; all trajectories take part, those that are alone with a simulated measurement too."""

    def evaluate(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """See `RatioObjective.evaluate`; `beta` has no part in it."""
        delta = log_ratio.detach().double().sum(1) - beta * batch.log_likelihood.double()
        group = batch.group
        centre = group_mean(delta, torch.ones_like(delta), group)
        return -log_ratio.double().sum(1).mean(), delta - centre[group]

    def loss(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """See `RatioObjective.loss`; the mean is over all trajectories."""
        _, residual = super().loss(log_ratio, batch, beta)
        return -log_ratio.double().sum(1).mean(), residual
