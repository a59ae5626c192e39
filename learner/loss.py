r"""From residuals r to the loss of a batch: the square, or Huber's function, which bounds what one trajectory can do.

    square: r^2 / 2,        huber: r^2 / 2 for |r| <= c, else c (|r| - c / 2).

Huber leaves the fixed point (r = 0 everywhere) where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.trajectory import OWN_MEASUREMENT
from learner.objectives import Objective

__all__ = ["batch_loss", "residual_loss"]


def residual_loss(residual: Tensor, huber: float | None) -> Tensor:
    """[B] loss of each `residual` [B]; `huber` is c, or None for the square."""
    if huber is None:
        return 0.5 * residual.square()
    return torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=huber, reduction="none")


def batch_loss(
    objective: Objective,
    log_ratio: Tensor,
    log_likelihood: Tensor,
    log_partition: Tensor,
    group: Tensor,
    beta: float,
    huber: float | None,
) -> tuple[Tensor, Tensor]:
    """(mean loss [], residual [B] float64) of a batch; for the arguments see `learner.objectives.rtb.rtb`.

    The mean is over the trajectories that have a residual. One with a measurement y' of its own has none, as log Z(y')
    is not known, and changes nothing of the others'. What stands for it, without a gradient, is minus its log-weight
    less the mean over such trajectories: a scale that shows when q runs away, but not a measure of fit, for log p(y')
    varies with y'.
    """
    own = group == OWN_MEASUREMENT
    if not bool(own.any()):
        residual = objective(log_ratio, log_likelihood, log_partition, group, beta, huber)
        return residual_loss(residual, huber).mean(), residual
    stand_in = log_ratio.detach().double() - log_likelihood.double()
    stand_in = stand_in - stand_in[own].mean()
    known = ~own
    if not bool(known.any()):
        return 0.0 * log_ratio.sum(), stand_in
    residual = objective(log_ratio[known], log_likelihood[known], log_partition, group[known], beta, huber)
    return residual_loss(residual, huber).mean(), stand_in.index_put((known,), residual.detach())
