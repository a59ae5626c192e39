r"""The gradient of a loss on residuals, in memory that does not grow with the length of the chain.

A loss L that sees the posterior through its log-ratios l_ik = log q_ik - log p_ik alone has the gradient

    dL/dtheta = sum_ik w_ik dlog q_ik/dtheta,    w_ik = dL/dl_ik.

Pass 1 scores all transitions without a graph and gives w; pass 2 rebuilds the graph chunk by chunk of stacked
(trajectory, step) pairs and back-propagates w_ik log q_ik. A batch that fits one chunk is scored once, with its graph.
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
from learner.batch import PathBatch

__all__ = ["LossOutput", "accumulate_gradient", "denoising_log_ratio"]


@dataclass(frozen=True, slots=True, eq=False)
class LossOutput:
    """Loss and residuals of a batch, without graph."""

    loss: Tensor
    """[] mean over the batch."""
    residual: Tensor | None
    """[B] float64; None where the loss is not one of the trajectories given."""
    log_ratio: Tensor | None
    """[B] float64, sum over the path of log q - log p; None likewise."""


def accumulate_gradient(
    posterior: Posterior,
    batch: PathBatch,
    loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    max_rows: int,
    forward_kl: float = 0.0,
) -> LossOutput:
    """Adds the gradient of the mean loss to the parameters' `.grad`; the output has residual and log-ratio.

    `loss` maps the log-ratios [B, T] (float64) to (mean loss [], residual [B]); it may have parameters of its own
    (log Z), which get their gradient too. At most `max_rows` transitions are held in a graph at once. `forward_kl` is
    the weight of the denoising term above; the loss that is returned is without it.
    """
    count, steps = batch.states.shape[0], batch.states.shape[1] - 1
    if count * steps <= max_rows:
        row, step = next(stacked_transitions(count, steps, count * steps))
        ratio, given_x = _log_ratios(posterior, batch, row, step, forward_kl > 0)
        ratios = ratio.reshape(count, steps).double()
        value, residual = loss(ratios)
        (value - forward_kl / count * given_x.double().sum()).backward()
        return LossOutput(value.detach(), residual.detach(), ratios.detach().sum(1))
    with torch.no_grad():
        pairs = stacked_transitions(count, steps, max_rows)
        chunks = [_log_ratios(posterior, batch, row, step, False)[0] for row, step in pairs]
    ratios = torch.cat(chunks).reshape(count, steps).double().requires_grad_(True)
    value, residual = loss(ratios)
    value.backward()
    assert ratios.grad is not None
    weight = ratios.grad
    for row, step in stacked_transitions(count, steps, max_rows):
        ratio, given_x = _log_ratios(posterior, batch, row, step, forward_kl > 0)
        ((weight[row, step] * ratio).sum() - forward_kl / count * given_x.double().sum()).backward()
    return LossOutput(value.detach(), residual.detach(), ratios.detach().sum(1))


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
