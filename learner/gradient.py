r"""The gradient of a loss on residuals, in memory that does not grow with the length of the chain.

The residual is linear in the log-ratios, delta_i = sum_k log q_ik + (terms without parameters), so for any loss L

    dL/dtheta = sum_i w_i sum_k dlog q_ik/dtheta,    w_i = dL/ddelta_i.

Pass 1 scores all transitions without a graph and gives w; pass 2 rebuilds the graph chunk by chunk of stacked
(trajectory, step) pairs and back-propagates w_i log q_ik. A batch that fits one chunk is scored once, with its graph.
Both give the gradient of plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.path import stacked_transitions
from diffusion.posterior import Posterior

__all__ = ["LossOutput", "PathBatch", "accumulate_gradient"]


@dataclass(frozen=True, slots=True, eq=False)
class PathBatch:
    """What the gradient needs of B trajectories with T transitions."""

    states: Tensor
    """[B, T+1, *D]."""
    denoised: Tensor
    """[B, T, *D] the prior's estimates of x."""
    measurement: Tensor
    """[B, *Y]."""
    guidance: Tensor | None = None
    """[B, T, *D] gradient of log p(y | x^(s)) with respect to s, where the posterior's form uses it."""


@dataclass(frozen=True, slots=True, eq=False)
class LossOutput:
    """Loss and residuals of a batch, without graph."""

    loss: Tensor
    """[] mean over the batch."""
    residual: Tensor
    """[B] float64."""
    log_ratio: Tensor
    """[B] float64, sum over the path of log q - log p."""


def accumulate_gradient(
    posterior: Posterior,
    batch: PathBatch,
    loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    max_rows: int,
) -> LossOutput:
    """Adds the gradient of the mean loss to the parameters' `.grad`.

    `loss` maps the summed log-ratio [B] (float64) to (mean loss [], residual [B]); it may have parameters of its own
    (log Z), which get their gradient too. At most `max_rows` transitions are held in a graph at once.
    """
    count, steps = batch.states.shape[0], batch.states.shape[1] - 1
    if count * steps <= max_rows:
        total = _log_ratio(posterior, batch, *next(stacked_transitions(count, steps, count * steps)))
        total = total.reshape(count, steps).double().sum(1)
        value, residual = loss(total)
        value.backward()
        return LossOutput(value.detach(), residual.detach(), total.detach())
    with torch.no_grad():
        chunks = [_log_ratio(posterior, batch, *pairs) for pairs in stacked_transitions(count, steps, max_rows)]
    total = torch.cat(chunks).reshape(count, steps).double().sum(1)
    total.requires_grad_(True)
    value, residual = loss(total)
    value.backward()
    assert total.grad is not None
    weight = total.grad
    for row, step in stacked_transitions(count, steps, max_rows):
        (weight[row] * _log_ratio(posterior, batch, row, step)).sum().backward()
    return LossOutput(value.detach(), residual.detach(), total.detach())


def _log_ratio(posterior: Posterior, batch: PathBatch, row: Tensor, step: Tensor) -> Tensor:
    """[N] log q - log p of the transitions (row, step), with graph."""
    states, denoised, measurement = batch.states, batch.denoised[row, step], batch.measurement[row]
    guidance = None if batch.guidance is None else batch.guidance[row, step]
    return posterior.log_ratio(states[row, step + 1], states[row, step], step, denoised, measurement, guidance)
