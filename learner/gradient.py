r"""The gradient of a loss on residuals, in memory that does not grow with the length of the chain.

The residual is linear in the log-ratios, delta_i = sum_k log q_ik + (terms without parameters), so for any loss L

    dL/dtheta = sum_i w_i sum_k dlog q_ik/dtheta,    w_i = dL/ddelta_i.

Pass 1 scores all transitions without a graph and gives w; pass 2 rebuilds the graph chunk by chunk of stacked
(trajectory, step) pairs and back-propagates w_i log q_ik. A batch that fits one chunk is scored once, with its graph.
Both give the gradient of plain autograd.

With `forward_kl` = c > 0 the term  -(c / B) sum_ik log q(s_ik+1 | s_ik)  is added, with log q averaged over s_k+1 given
s_k and x = s_T under the noising process. That takes the transition's own noise out of it: with
z~_k = b_k (x - x^_k) / std_k it is, but for a constant, (c / B) sum_ik |u_ik - z~_ik|^2 / 2, a denoising loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.kernel import expand
from diffusion.path import stacked_transitions
from diffusion.posterior import Posterior, log_ratio

__all__ = ["LossOutput", "PathBatch", "accumulate_gradient", "denoising_log_ratio"]


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
    forward_kl: float = 0.0,
) -> LossOutput:
    """Adds the gradient of the mean loss to the parameters' `.grad`.

    `loss` maps the summed log-ratio [B] (float64) to (mean loss [], residual [B]); it may have parameters of its own
    (log Z), which get their gradient too. At most `max_rows` transitions are held in a graph at once. `forward_kl` is
    the weight of the denoising term above; the loss that is returned is without it.
    """
    count, steps = batch.states.shape[0], batch.states.shape[1] - 1
    if count * steps <= max_rows:
        row, step = next(stacked_transitions(count, steps, count * steps))
        ratio, given_x = _log_ratios(posterior, batch, row, step, forward_kl > 0)
        total = ratio.reshape(count, steps).double().sum(1)
        value, residual = loss(total)
        (value - forward_kl / count * given_x.double().sum()).backward()
        return LossOutput(value.detach(), residual.detach(), total.detach())
    with torch.no_grad():
        pairs = stacked_transitions(count, steps, max_rows)
        chunks = [_log_ratios(posterior, batch, row, step, False)[0] for row, step in pairs]
    total = torch.cat(chunks).reshape(count, steps).double().sum(1)
    total.requires_grad_(True)
    value, residual = loss(total)
    value.backward()
    assert total.grad is not None
    weight = total.grad
    for row, step in stacked_transitions(count, steps, max_rows):
        ratio, given_x = _log_ratios(posterior, batch, row, step, forward_kl > 0)
        ((weight[row] * ratio).sum() - forward_kl / count * given_x.double().sum()).backward()
    return LossOutput(value.detach(), residual.detach(), total.detach())


def denoising_log_ratio(posterior: Posterior, batch: PathBatch, row: Tensor, step: Tensor) -> Tensor:
    """Log q - log p [N] of the transitions (row, step), with graph, averaged over s_k+1 given s_k and x."""
    return _log_ratios(posterior, batch, row, step, True)[1]


def _log_ratios(
    posterior: Posterior, batch: PathBatch, row: Tensor, step: Tensor, average: bool
) -> tuple[Tensor, Tensor]:
    """Log q - log p [N] of the transitions (row, step), with graph, and its average given x, or zeros."""
    states, denoised, measurement = batch.states, batch.denoised[row, step], batch.measurement[row]
    guidance = None if batch.guidance is None else batch.guidance[row, step]
    state, next_state = states[row, step], states[row, step + 1]
    if not average:
        ratio = posterior.log_ratio(next_state, state, step, denoised, measurement, guidance)
        return ratio, torch.zeros_like(ratio)
    prior = posterior.prior
    control = posterior.control(state, step, denoised, measurement, guidance)
    mean, std = prior.mean(state, step, denoised), expand(prior.std[step], state)
    towards = prior.mean(state, step, states[row, -1])
    return log_ratio((next_state - mean) / std, control), log_ratio((towards - mean) / std, control)
