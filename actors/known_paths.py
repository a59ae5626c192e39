"""Paths that are there already: what the prior and the problem's guide estimate along them, and what a control says."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.rollout import Control
from diffusion.kernel import expand
from diffusion.path import MAX_ROWS, stacked_transitions
from diffusion.posterior import log_ratio
from envs.problem import InverseProblem

__all__ = ["estimates_along", "ratio_along"]


@torch.no_grad()
def estimates_along(
    problem: InverseProblem, states: Tensor, measurement_id: Tensor, guided: bool
) -> tuple[Tensor, Tensor | None]:
    """The prior's estimates of x at s_0..s_K-1 of `states` [N, K+1, *D], and if `guided` the guidance there."""
    count, steps = len(states), states.shape[1] - 1
    denoised, guidance = [], []
    for row, step in stacked_transitions(count, steps, MAX_ROWS):
        state = states[row, step]
        if not guided:
            denoised.append(problem.prior.denoised(state, step))
            continue
        estimate, pulled = problem.guide(state, step, problem.measurements[measurement_id[row]].to(state))
        denoised.append(estimate)
        guidance.append(pulled)
    shape = (count, steps, *states.shape[2:])
    return torch.cat(denoised).reshape(shape), torch.cat(guidance).reshape(shape) if guidance else None


@torch.no_grad()
def ratio_along(
    problem: InverseProblem,
    control: Control | None,
    measurement_id: Tensor,
    states: Tensor,
    denoised: Tensor,
    guidance: Tensor | None,
    *,
    first: int = 0,
    with_noise: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Of the transitions s_k..s_k+K in `states` [N, K+1, *D], k = `first`, under a `control` (None: the prior's).

    `denoised` and `guidance` [N, K, *D] are what `estimates_along` gives.

    Returns:
        log q - log p [N, K], and if asked for the noise xi [N, K, *D] with which q makes the transitions.
    """
    prior, count, steps = problem.prior, len(states), states.shape[1] - 1
    if control is None and not with_noise:
        return torch.zeros(count, steps), None
    ratios, noise = [], []
    for row, offset in stacked_transitions(count, steps, MAX_ROWS):
        step = first + offset
        state, estimate = states[row, offset], denoised[row, offset]
        mean, std = prior.mean(state, step, estimate), expand(prior.std[step], state)
        shifted = (states[row, offset + 1] - mean) / std
        shift = torch.zeros_like(state)
        if control is not None:
            carried = () if guidance is None else (guidance[row, offset],)
            shift = control(state, step, estimate, problem.measurements[measurement_id[row]], *carried)
        ratios.append(log_ratio(shifted, shift))
        if with_noise:
            noise.append(shifted - shift)
    shape = (count, steps, *prior.event_shape)
    return torch.cat(ratios).reshape(count, steps), torch.cat(noise).reshape(shape) if with_noise else None
