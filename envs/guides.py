"""By how much y moves the estimate of x at a state: the guidance of an inverse problem that is a shift.

A guide gives (x^, guidance), both [N, *D], at `state` [N, *D] and index `step` [N]. What each is, and when it is the
right one, says `diffusion.posterior.control`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.kernel import expand
from diffusion.newton import ITERATIONS, Product
from diffusion.prior import Prior

__all__ = ["Shift", "repeated", "repeated_shift", "shifted", "variational"]

REPEATS = 3  # of a repeated guidance
SHIFTS, SHIFT_ITERATIONS = 2, 4  # of one that is repeated with the covariance, and conjugate gradients of each


class Shift(Protocol):
    """How far y moves an estimate of x, for a covariance of its error."""

    def __call__(self, value: Tensor, covariance: Product, iterations: int = ITERATIONS) -> Tensor:
        """[N, *D] for x^ = `value` [N, *D]: see `diffusion.newton`."""
        ...


def shifted(prior: Prior, shift: Shift, state: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """By the covariance of x given the state."""
    return repeated_shift(prior, shift, state, step, 0, ITERATIONS)


def repeated_shift(
    prior: Prior, shift: Shift, state: Tensor, step: Tensor, moves: int = SHIFTS, iterations: int = SHIFT_ITERATIONS
) -> tuple[Tensor, Tensor]:
    """The same at a state that was moved by `moves` such shifts before."""
    first, covariance = prior.covariance_given(state, step)
    moved = first
    for _ in range(moves):
        state = state + expand(prior.alpha[step], state) * shift(moved, covariance, iterations)
        moved, covariance = prior.covariance_given(state, step)
    return first, moved - first + shift(moved, covariance, iterations)


def repeated(prior: Prior, shift: Shift, state: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """By moving the state towards y, as if all elements of x had one variance and no covariance, and asking again."""
    variance = expand(prior.uncertainty[step].square(), state).to(state)
    first = moved = prior.denoised(state, step)
    for _ in range(REPEATS):
        state = state + expand(prior.alpha[step], state) * shift(moved, lambda vector: variance * vector)
        moved = prior.denoised(state, step)
    return first, moved - first


def variational(
    prior: Prior,
    approximation: Callable[[int], Denoiser],
    known: Tensor,
    state: Tensor,
    step: Tensor,
    measurement: Tensor,
) -> tuple[Tensor, Tensor]:
    """By the denoiser of an `approximation` of the posterior of each of the measurements `known` [M, *Y].

    Raises:
        ValueError: a measurement is none of these.
    """
    first = prior.denoised(state, step)
    moved, left = torch.empty_like(first), torch.ones(len(state), dtype=torch.bool, device=state.device)
    for row, own in enumerate(known):
        here = (measurement == own.to(measurement)).flatten(1).all(1)
        if bool(here.any()):
            moved[here] = approximation(row)(state[here], prior.alpha[step[here]], prior.sigma[step[here]])
            left &= ~here
    if bool(left.any()):
        raise ValueError(
            f"guidance variational is worked out for the problem's own {len(known)} measurements, and "
            f"{int(left.sum())} of {len(left)} states are of others"
        )
    return first, moved - first
