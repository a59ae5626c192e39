r"""The gradient of a loss on residuals, in memory that does not grow with the length of the chain.

A loss L that sees the posterior through its log-ratios l_ik = log q_ik - log p_ik alone has the gradient

    dL/dtheta = sum_ik w_ik dlog q_ik/dtheta,    w_ik = dL/dl_ik.

Pass 1 scores all transitions without a graph and gives w; pass 2 rebuilds the graph chunk by chunk of stacked
(trajectory, step) pairs and back-propagates w_ik log q_ik. A batch whose graph fits the memory is scored once, with it.
Both give the gradient of plain autograd. Either way a processor takes few enough transitions at a time that their
activations stay in its cache, where an operation finds what the one before it left; see `RowLimits`.

Pass 2 may take K of the T transitions of each trajectory (`learner.subset`), weighted so that the gradient is right on
average, and pass 1 leaves out trajectories that were drawn from the present q: an update then costs K / T of a whole
one.

With `forward_kl` = c > 0 the term  -(c / N) sum_ik log q(s_ik+1 | s_ik)  is added, over the N trajectories i that stand
for the posterior (`PathBatch.stands_for_posterior`), with log q averaged over s_k+1 given s_k and x = s_T under the
noising process. That takes the transition's own noise out of it: with z~_k = b_k (x - x^_k) / std_k it is, but for a
constant, (c / N) sum_ik |u_ik - z~_ik|^2 / 2, a denoising loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.kernel import expand
from diffusion.path import even_chunks, stacked_transitions
from diffusion.posterior import Posterior, log_ratio
from learner.batch import PathBatch
from learner.ranks import ONE_RANK, Ranks, own_rows
from learner.subset import StepSubset

__all__ = [
    "PROBED",
    "GradientPlan",
    "LossOutput",
    "RowLimits",
    "accumulate_gradient",
    "denoising_log_ratio",
    "denoising_share",
    "row_limits",
]

PROBED = 8  # transitions that are scored to see what one takes
CACHED_BYTES = 2**20  # of a tensor in a pass, on average: close to the best for MLPs and U-Nets


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How many transitions are taken at once."""

    graph: int
    """In a graph: as many as fit the memory."""
    network: int
    """In one run of the network: as many as keep its activations in the processor's cache, at most `graph`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GradientPlan:
    """How one gradient is made; see `accumulate_gradient`."""

    limits: RowLimits
    """Transitions at once."""
    forward_kl: float = 0.0
    """Weight of the denoising term."""
    subset: StepSubset | None = None
    """Transitions of each trajectory that it is taken at; None: all."""
    fresh: Tensor | None = None
    """[B] bool, trajectories drawn from the present q, whose log q is what they were drawn with; None: none is known to
    be."""
    seed: int = 0
    """For objectives that draw; another one on every rank."""
    ranks: Ranks = ONE_RANK
    """Who has the rest of the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class LossOutput:
    """Loss and residuals of a batch, without graph."""

    loss: Tensor
    """[] mean over the batch of all ranks."""
    residual: Tensor | None
    """[B] float64, of the batch of all ranks; None where the loss is not one of the trajectories given."""
    log_ratio: Tensor | None
    """[B] float64, sum over the path of log q - log p, of this rank's trajectories; None likewise."""


def accumulate_gradient(
    posterior: Posterior,
    batch: PathBatch,
    loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    plan: GradientPlan,
) -> LossOutput:
    """Adds this rank's part of the gradient to the parameters' `.grad`; the output has residual and log-ratio.

    `loss` maps the log-ratios [B, T] (float64) of all ranks' trajectories to (mean loss [], residual [B]); it may have
    parameters of its own (log Z), which get their gradient too, that of the whole batch. The loss that is returned is
    without the denoising term. With `plan.fresh` it has to be a loss of the summed log-ratios, as their parts are not
    known.
    """
    count, steps, limits, ranks = len(batch), batch.num_steps, plan.limits, plan.ranks
    denoises = plan.forward_kl > 0
    share = plan.forward_kl * denoising_share(batch, ranks) if denoises else torch.zeros(())
    at_once = plan.subset is None and count * steps <= limits.graph
    if at_once:
        passes = [
            _log_ratios(posterior, batch, row, step, denoises)
            for row, step in stacked_transitions(count, steps, limits.network)
        ]
        ratios, given_x = (torch.cat(parts).reshape(count, steps).double() for parts in zip(*passes, strict=True))
    else:
        ratios = _score(posterior, batch, limits.network, plan.fresh)
    of_all = ranks.gather(ratios).requires_grad_(True)
    value, residual = loss(of_all)
    value.backward()
    assert of_all.grad is not None
    weight = of_all.grad[own_rows(ranks, batch)]
    if at_once:
        scaled = (weight * ratios).sum()
        (scaled - (share[:, None] * given_x).sum() if denoises else scaled).backward()
    else:
        for row, step, factor in _chosen(ratios, plan.subset, plan.fresh, limits.network):
            ratio, given_x = _log_ratios(posterior, batch, row, step, denoises)
            part = weight[row, step] * ratio
            (factor * (part - share[row] * given_x if denoises else part)).sum().backward()
    return LossOutput(value.detach(), residual.detach(), ratios.detach().sum(1))


@torch.no_grad()
def _score(posterior: Posterior, batch: PathBatch, max_rows: int, fresh: Tensor | None) -> Tensor:
    """[B, T] float64 log q - log p of all transitions; of fresh trajectories the sum is spread evenly."""
    count, steps = len(batch), batch.num_steps
    ratios = (batch.log_behaviour_ratio.double() / steps)[:, None].repeat(1, steps)
    stale = torch.arange(count) if fresh is None else torch.nonzero(~fresh)[:, 0]
    parts = [
        _log_ratios(posterior, batch, stale[row], step, False)[0].double()
        for row, step in stacked_transitions(len(stale), steps, max_rows)
    ]
    if parts:
        ratios[stale] = torch.cat(parts).reshape(len(stale), steps)
    return ratios


def _chosen(
    ratios: Tensor, subset: StepSubset | None, fresh: Tensor | None, max_rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks (row [N], step [N], factor [N]) of the transitions that the gradient is taken at."""
    count, steps = ratios.shape
    if subset is None or subset.steps_per_path >= steps:
        one = torch.ones((), dtype=torch.float64, device=ratios.device)
        for row, step in stacked_transitions(count, steps, max_rows):
            yield row, step, one
        return
    drawn, factor = subset.draw(ratios, fresh)
    row = torch.arange(count).repeat_interleave(drawn.shape[1])
    for part in even_chunks(len(row), max_rows):
        yield row[part], drawn.flatten()[part], factor.flatten()[part]


def denoising_share(batch: PathBatch, ranks: Ranks = ONE_RANK) -> Tensor:
    """[B] float64 what each trajectory counts in the mean over those, of all ranks, that stand for the posterior."""
    counted = batch.stands_for_posterior.double()
    return counted / ranks.total(counted.sum()).clamp_min(1)


def denoising_log_ratio(posterior: Posterior, batch: PathBatch, row: Tensor, step: Tensor) -> Tensor:
    """Log q - log p [N] of the transitions (row, step), with graph, averaged over s_k+1 given s_k and x."""
    return _log_ratios(posterior, batch, row, step, True)[1]


def row_limits(posterior: Posterior, batch: PathBatch, budget: int, average: bool) -> RowLimits:
    """Transitions whose graph fits `budget` bytes, at least one, from what autograd saves for a few of `batch`.

    `average` is whether their averages given x are in it too: where there is a denoising term.
    """

    def saved(rows: int) -> list[int]:
        storages: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        pairs = torch.arange(min(rows, len(batch) * batch.num_steps))
        row, step = pairs // batch.num_steps, pairs % batch.num_steps
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            graph = _log_ratios(posterior, batch, row, step, average)
        del graph
        return list(storages.values())

    few = max(min(PROBED, len(batch) * batch.num_steps // 2), 1)
    # The difference leaves out what does not grow with the rows: weights, and tensors of the whole batch.
    less, more = saved(few), saved(2 * few)
    each = max((sum(more) - sum(less)) / few, 1.0)
    graph = max(int(budget / each), 1)
    if batch.states.device.type == "cuda":  # which has no use for small passes
        return RowLimits(graph, graph)
    tensors = max(sum(b > a for a, b in zip(less, more, strict=False)), 1)
    return RowLimits(graph, min(max(int(CACHED_BYTES * tensors / each), 1), graph))


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
