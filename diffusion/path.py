"""Scoring whole paths: (trajectory, step) pairs stacked on the batch axis instead of a loop over steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from diffusion.denoiser import Density
from diffusion.kernel import normal_log_prob
from diffusion.posterior.base import Guide
from diffusion.prior import Prior

__all__ = [
    "PathScorer",
    "denoise_path",
    "density_over_chain",
    "even_chunks",
    "guide_path",
    "path_log_prior",
    "path_log_ratio",
    "stacked_transitions",
]

MAX_ROWS = 16_384  # transitions scored at once; bounds memory, not results


class PathScorer(Protocol):
    """Anything with the log-density ratio of a posterior to the prior: a posterior form, or an exact posterior."""

    def log_ratio(
        self, next_state: Tensor, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor
    ) -> Tensor:
        """[N] log q - log p of N transitions; see `diffusion.posterior.Posterior.log_ratio`."""
        ...


def even_chunks(count: int, max_rows: int) -> tuple[Tensor, ...]:
    """0 ... `count` - 1 in as few parts of at most `max_rows` as can be, all of nearly the same size."""
    return torch.arange(count).tensor_split(-(-count // max_rows)) if count else ()


def stacked_transitions(batch: int, steps: int, max_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks (row [N], step [N]) that together cover every (trajectory, step) pair once, N <= `max_rows`."""
    for pairs in even_chunks(batch * steps, max_rows):
        yield pairs // steps, pairs % steps


@torch.no_grad()
def denoise_path(prior: Prior, states: Tensor, max_rows: int = MAX_ROWS) -> Tensor:
    """[B, T, *D] the prior's estimates of x along `states` [B, T+1, *D]."""
    batch, steps = states.shape[0], states.shape[1] - 1
    parts = [prior.denoised(states[row, step], step) for row, step in stacked_transitions(batch, steps, max_rows)]
    return torch.cat(parts).reshape(batch, steps, *states.shape[2:])


@torch.no_grad()
def guide_path(guide: Guide, states: Tensor, measurement: Tensor, max_rows: int = MAX_ROWS) -> Tensor:
    """[B, T, *D] guidance along `states` [B, T+1, *D] for y = `measurement` [B, *Y]."""
    batch, steps = states.shape[0], states.shape[1] - 1
    parts = [
        guide(states[row, step], step, measurement[row])[1] for row, step in stacked_transitions(batch, steps, max_rows)
    ]
    return torch.cat(parts).reshape(batch, steps, *states.shape[2:])


@torch.no_grad()
def path_log_prior(prior: Prior, states: Tensor, denoised: Tensor, max_rows: int = MAX_ROWS) -> Tensor:
    """[B, T] log p(s_k+1 | s_k) of `states` [B, T+1, *D]; the base density is not included."""
    batch, steps = states.shape[0], states.shape[1] - 1
    parts = [
        prior.log_prob(states[row, step + 1], states[row, step], step, denoised[row, step])
        for row, step in stacked_transitions(batch, steps, max_rows)
    ]
    return torch.cat(parts).reshape(batch, steps)


@torch.no_grad()
def path_log_ratio(
    scorer: PathScorer, states: Tensor, denoised: Tensor, measurement: Tensor, max_rows: int = MAX_ROWS
) -> Tensor:
    """[B, T] log q - log p of `states` [B, T+1, *D], given `denoised` [B, T, *D] and `measurement` [B, *Y]."""
    batch, steps = states.shape[0], states.shape[1] - 1
    parts = [
        scorer.log_ratio(states[row, step + 1], states[row, step], step, denoised[row, step], measurement[row])
        for row, step in stacked_transitions(batch, steps, max_rows)
    ]
    return torch.cat(parts).reshape(batch, steps)


@torch.no_grad()
def density_over_chain(prior: Prior, states: Tensor, denoised: Tensor) -> Tensor:
    """[B] float64 log p(x) + log n(tau | x) - log p(tau) of paths [B, T+1, *D] with the prior's estimates [B, T, *D].

    n is the noising process. Zero where the chain is its reverse, and small for many steps.

    Raises:
        ValueError: the prior's denoiser does not know the density p(x).
    """
    density = prior.denoiser
    if not isinstance(density, Density):
        raise ValueError(f"{type(density).__name__} does not know the density of x")
    log_chain = path_log_prior(prior, states, denoised).double().sum(1)
    states = states.double()
    start = states[:, 0]
    log_base = normal_log_prob(start, torch.zeros_like(start), prior.sigma[:1].expand(len(start)))
    return density.log_prob(states[:, -1]) + prior.noising.path_log_prob(states).sum(1) - log_base - log_chain
