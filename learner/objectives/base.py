"""What an objective is: a loss of a batch of trajectories, with the parameters that it needs beside the posterior's."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from diffusion.posterior import Posterior
from learner.batch import PathBatch
from learner.gradient import GradientPlan, LossOutput, accumulate_gradient
from learner.loss import Loss
from learner.ranks import whole_batch

__all__ = ["Balance", "Objective", "RatioObjective", "possible"]


IMPOSSIBLE_NATS = 30.0
"""By how much a path of likelihood zero counts as less likely than the least likely one of its batch that is not."""


def possible(log_likelihood: Tensor) -> Tensor:
    """[B] with -inf replaced by IMPOSSIBLE_NATS below the smallest other value, or 0 where there is none.

    No residual could make up for a likelihood of zero, and a path that was left out would not teach q to keep away.
    """
    zero = log_likelihood == -torch.inf
    if not bool(zero.any()):
        return log_likelihood
    others = log_likelihood[~zero]
    least = others.min() if len(others) else torch.zeros_like(log_likelihood[0])
    return torch.where(zero, least - IMPOSSIBLE_NATS, log_likelihood)


class Objective(nn.Module, ABC):
    """A loss whose minimum over q is the posterior."""

    @abstractmethod
    def accumulate(self, posterior: Posterior, batch: PathBatch, beta: float, plan: GradientPlan) -> LossOutput:
        """Adds the gradient of the mean loss to the `.grad` of the posterior's and the objective's parameters.

        Of several ranks each adds its part for the posterior, and the whole for the objective.
        """

    def known(self, batch: PathBatch) -> Tensor:
        """[B] bool, which trajectories have a residual: all of them, if any."""
        return torch.ones_like(batch.exact)


class RatioObjective(Objective):
    """One that sees q through the log-ratios of transitions alone, and so has its gradient in constant memory."""

    of_sums = True
    """Whether the loss sees of the log-ratios of a trajectory their sum alone."""
    sees_paths = False
    """Whether the loss looks at states and estimates, which several ranks then have to send each other."""

    @abstractmethod
    def evaluate(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """(mean loss [], residual [B] float64) of trajectories that are all `known`.

        `log_ratio` [B, T] float64 is log q - log p of every transition, with graph. The residual is that of relative
        trajectory balance, or as much like it as the objective knows: guard, priorities and annealing look at it.
        """

    def known(self, batch: PathBatch) -> Tensor:
        """[B] bool: those of the problem's measurements, and those of which there are several of one measurement."""
        _, group, count = torch.unique(batch.measurement_id, return_inverse=True, return_counts=True)
        return (batch.measurement_id >= 0) | (count[group] > 1)

    def loss(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """(mean loss [], residual [B] float64) of a batch.

        The mean is over the trajectories that have a residual. One that is alone with a simulated measurement y' has
        none where log Z(y') is not learned, and changes nothing of the others'. What stands for it, without a gradient,
        is minus its log-weight less the mean over such trajectories: a scale that shows when q runs away, but not a
        measure of fit, for log p(y') varies with y'.

        Raises:
            ValueError: `log_ratio` is not [B, T]; a [B, 1] among what is summed would make a matrix of the residuals.
        """
        shapes = [tuple(value.shape) for value in (log_ratio, batch.log_likelihood, batch.measurement_id)]
        if shapes != [(len(batch), batch.num_steps), (len(batch),), (len(batch),)]:
            raise ValueError(f"log_ratio must be [B, T], log_likelihood and measurement_id [B], got {shapes}")
        batch = dataclasses.replace(batch, log_likelihood=possible(batch.log_likelihood))
        known = self.known(batch)
        if bool(known.all()):
            return self.evaluate(log_ratio, batch, beta)
        stand_in = log_ratio.detach().sum(1) - batch.log_likelihood.double()
        stand_in = stand_in - stand_in[~known].mean()
        if not bool(known.any()):
            return 0.0 * log_ratio.sum(), stand_in
        value, residual = self.evaluate(log_ratio[known], batch.take(known), beta)
        return value, stand_in.index_put((known,), residual.detach())

    def accumulate(self, posterior: Posterior, batch: PathBatch, beta: float, plan: GradientPlan) -> LossOutput:
        """See `Objective.accumulate`."""
        if not self.of_sums:
            plan = dataclasses.replace(plan, fresh=None)
        whole = whole_batch(plan.ranks, batch, with_paths=self.sees_paths)
        return accumulate_gradient(posterior, batch, lambda log_ratio: self.loss(log_ratio, whole, beta), plan)


class Balance(RatioObjective):
    """An objective that asks of every trajectory that its residual be zero."""

    def __init__(self, shape: Loss) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """[B] float64, for `log_ratio` [B] summed over the path."""

    def evaluate(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """See `RatioObjective.evaluate`."""
        residual = self.residual(log_ratio.double().sum(1), batch, beta)
        return self.shape(residual).mean(), residual
