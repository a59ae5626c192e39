r"""References without diffusion: Hamiltonian Monte Carlo, and the evidence by a population that is tempered with it.

    H(z, m) = -log pi(z) + |m|^2 / 2,    leapfrog:  m += h/2 grad log pi,  z += h m,  m += h/2 grad log pi,

accepted with probability min(1, exp(-Delta H)) (Duane et al. 1987; Neal 2011, arXiv 1206.1901). Many chains run side
by side with one step size, which follows the acceptance during warm-up. z are coordinates in which the prior is
N(0, I), or nearly so; x = whiten^-1(z) is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.resampling import effective_fraction, systematic

__all__ = ["Chains", "LogDensity", "hmc", "tempered_log_evidence"]

LogDensity = Callable[[Tensor], Tensor]  # z [C, D] -> [C]
STEPS = 12  # leapfrog steps of a trajectory on average
TARGET = 0.8  # acceptance
RATE = 0.3  # of the step size's logarithm to the acceptance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chains:
    """Draws of independent chains."""

    draws: Tensor
    """[S, C, D] float64: S draws of each of C chains, after the warm-up."""
    acceptance: float
    """Mean acceptance after the warm-up."""
    step_size: float
    """h."""


def _gradient(log_density: LogDensity, position: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = position.detach().requires_grad_(True)
        value = log_density(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _move(
    log_density: LogDensity, position: Tensor, step_size: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """New positions [C, D] and acceptance probabilities [C] of one trajectory each; its length is drawn for all."""
    momentum = torch.randn(position.shape, generator=generator, dtype=position.dtype)
    steps = int(torch.randint(STEPS // 2, STEPS + STEPS // 2 + 1, (), generator=generator))
    value, gradient = _gradient(log_density, position)
    start, end, new = value - momentum.square().sum(1) / 2, value, position
    for _ in range(steps):
        momentum = momentum + step_size / 2 * gradient
        new = new + step_size * momentum
        end, gradient = _gradient(log_density, new)
        momentum = momentum + step_size / 2 * gradient
    log_ratio = end - momentum.square().sum(1) / 2 - start
    probability = torch.where(torch.isfinite(log_ratio), log_ratio.clamp_max(0).exp(), 0.0)
    accepted = torch.rand(len(position), generator=generator, dtype=position.dtype) < probability
    return torch.where(accepted[:, None], new, position), probability


def hmc(
    log_density: LogDensity,
    start: Tensor,
    *,
    warmup: int = 200,
    draws: int = 200,
    step_size: float = 0.1,
    generator: torch.Generator,
) -> Chains:
    """Chains of exp(`log_density`) from `start` [C, D] float64; the step size is fixed once the warm-up is over."""
    position, kept, acceptance = start, [], 0.0
    for index in range(warmup + draws):
        position, probability = _move(log_density, position, step_size, generator)
        mean = float(probability.mean())
        if index < warmup:
            step_size *= math.exp(RATE * (mean - TARGET) / math.sqrt(1 + index / 20))
        else:
            kept.append(position)
            acceptance += mean / draws
    return Chains(draws=torch.stack(kept), acceptance=acceptance, step_size=step_size)


def tempered_log_evidence(
    log_likelihood: LogDensity,
    start: Tensor,
    *,
    log_prior: LogDensity = lambda position: -position.square().sum(1) / 2,
    moves: int = 3,
    share: float = 0.5,
    step_size: float = 0.3,
    generator: torch.Generator,
) -> tuple[float, Tensor]:
    """Estimate of log integral prior(z) exp(`log_likelihood`) dz, and the population [N, D] at its end.

    `start` [N, D] are draws of the prior, whose log density up to a constant is `log_prior`. Sequential Monte Carlo
    over prior exp(beta log_likelihood) (Del Moral et al. 2006), beta raised so that the weights keep an effective
    sample size of `share`, with systematic resampling and `moves` HMC trajectories after every step.
    """
    position, beta, evidence = start, 0.0, 0.0
    while beta < 1:
        value = log_likelihood(position).double()
        low, high = beta, 1.0
        if effective_fraction((high - beta) * value) < share:
            while high - low > 1e-6 * high:
                middle = (low + high) / 2
                enough = effective_fraction((middle - beta) * value) >= share
                low, high = (middle, high) if enough else (low, middle)
        weight = (high - beta) * value
        evidence += float(weight.logsumexp(0)) - math.log(len(weight))
        beta = high
        position = position[systematic(weight.softmax(0), generator)]
        for _ in range(moves):
            position, probability = _move(
                lambda z, beta=beta: log_prior(z) + beta * log_likelihood(z), position, step_size, generator
            )
            step_size *= math.exp(RATE * (float(probability.mean()) - TARGET))
    return evidence, position
