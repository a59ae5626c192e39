r"""Pretraining: maximum likelihood on paths that stand for the posterior, a few transitions of each.

    L = -(1 / N) sum_i (T / K) sum_{k in S_i} log q(s_ik+1 | s_ik, y),

over the N paths that were drawn by importance or are exact, S_i being K of the T steps at equal distances. In
expectation this is KL(posterior || q) over whole paths, but for a constant, with log q averaged over the transition's
own noise as in `learner.gradient`. It needs no residual, so an update costs K / T of one that does, and it cannot lose
a mode that replay has: where the prior's rollouts or path search find all modes, this is the fast way to a posterior
that relative trajectory balance then only has to correct.

With `steps_by` uncertainty steps are drawn in proportion to v_k, the mean squared error of the prior's x^, and a tenth
of them evenly. The sum above is then weighted by how often: another divergence with the same minimum. What y adds is
learned where x is still open; of late steps, where the likelihood's gradients say nearly all of it, the target is
mostly noise.

With `fresh_measurements` an x of the prior is used under another y' ~ p(y' | x) and at other noise levels,
s_k = alpha_k x + sigma_k eps, each time. x are exact draws where the prior's denoiser can make them
(`diffusion.denoiser.DataSampler`), else the ends of stored paths of the prior, whatever was stored with them. What it
costs is the prior's estimate at every new state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.kernel import expand
from diffusion.path import MAX_ROWS, even_chunks
from diffusion.posterior import Posterior, log_ratio
from envs.problem import InverseProblem
from learner.batch import PathBatch
from learner.gradient import denoising_log_ratio, denoising_share
from learner.ranks import ONE_RANK, Ranks
from learner.subset import equally_spaced, spread_by

__all__ = ["PretrainingConfig", "accumulate_denoising_gradient", "accumulate_simulated_gradient"]

PRIOR_ROWS = 256  # states of which the prior makes its estimates at once
EVEN_SHARE = 0.1  # of the steps that are drawn by uncertainty, so that none is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """Maximum likelihood on paths drawn by importance, or exact, before relative trajectory balance."""

    until: float = 0.0
    """Fraction of the run that it takes; 0 is none."""
    batch_size: int = 512
    """Paths an update."""
    steps_per_path: int = 4
    """Transitions of each path, or all of them where the chain has no more."""
    steps_by: Literal["uniform", "uncertainty"] = "uniform"
    """Where they are drawn: uniform (at equal distances), or uncertainty (more of them where the prior's estimate of x
    is far off): twice as fast where the likelihood's gradients say the rest, as for Gaussian noise."""
    fresh_measurements: bool = False
    """Learn from x of the prior with a new measurement and new noise each time: from exact draws of x where the prior
    has a sampler, else from the ends of joint and prior paths in replay."""

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ValueError(f"learner.pretraining.until must be within [0, 1], got {self.until}")
        if self.batch_size < 1 or self.steps_per_path < 1:
            raise ValueError(
                "learner.pretraining.batch_size and steps_per_path must be at least 1, "
                f"got {self.batch_size} and {self.steps_per_path}"
            )

    def draw_steps(self, posterior: Posterior, count: int, generator: torch.Generator) -> Tensor:
        """[count, K] transitions of each path."""
        prior = posterior.prior
        chosen = min(self.steps_per_path, prior.num_steps)
        if self.steps_by == "uniform":
            return equally_spaced(count, prior.num_steps, chosen, generator)
        variance = prior.uncertainty.double().square()
        weight = (1 - EVEN_SHARE) * variance / variance.sum() + EVEN_SHARE / prior.num_steps
        return spread_by(weight, count, chosen, generator)


def accumulate_denoising_gradient(
    posterior: Posterior,
    batch: PathBatch,
    config: PretrainingConfig,
    seed: int,
    *,
    max_rows: int = MAX_ROWS,
    ranks: Ranks = ONE_RANK,
) -> Tensor:
    """Adds this rank's part of the gradient of L to `.grad`; L [] of all ranks, without graph.

    `seed` chooses the steps, and is another one on every rank. `max_rows` transitions are in a graph at a time.
    """
    count, steps = batch.states.shape[0], batch.states.shape[1] - 1
    drawn = config.draw_steps(posterior, count, torch.Generator(batch.states.device).manual_seed(seed))
    step, chosen = drawn.flatten(), drawn.shape[1]
    row = torch.arange(count).repeat_interleave(chosen)
    weight = -(steps / chosen) * denoising_share(batch, ranks)
    total = torch.zeros((), dtype=torch.float64, device=batch.states.device)
    for part in even_chunks(len(row), max_rows):
        loss = (weight[row[part]] * denoising_log_ratio(posterior, batch, row[part], step[part])).sum()
        loss.backward()
        total += loss.detach()
    return ranks.total(total)


def accumulate_simulated_gradient(
    problem: InverseProblem,
    posterior: Posterior,
    samples: Tensor,
    config: PretrainingConfig,
    generator: torch.Generator,
    *,
    counted: bool = True,
    max_rows: int = MAX_ROWS,
    ranks: Ranks = ONE_RANK,
) -> Tensor:
    """Adds this rank's part of the gradient of L to `.grad`; L [] of all ranks, without graph.

    x = `samples` [B, *D] are of the prior, or else not `counted`; `generator`, another one on every rank, draws
    measurements, steps and noise. `max_rows` transitions are in a graph at a time.
    """
    prior, count, steps = problem.prior, len(samples), problem.num_steps
    chosen = min(config.steps_per_path, steps)
    own = torch.full((), counted * count, dtype=torch.float64, device=samples.device)
    weight = -counted * steps / chosen / ranks.total(own).clamp_min(1)
    with torch.no_grad():
        measurement = problem.simulate(samples, generator)
    step = config.draw_steps(posterior, count, generator).flatten()
    row = torch.arange(count, device=samples.device).repeat_interleave(chosen)
    noise = torch.randn((len(row), *samples.shape[1:]), generator=generator, dtype=samples.dtype, device=samples.device)
    total = torch.zeros((), dtype=torch.float64, device=samples.device)
    # The prior, which has no graph, takes more at once: one of many components reads all of them for every part.
    for whole in even_chunks(len(row), max(max_rows, PRIOR_ROWS)):
        clean, seen, at = samples[row[whole]], measurement[row[whole]], step[whole]
        state = expand(prior.alpha[at], clean) * clean + expand(prior.sigma[at], clean) * noise[whole]
        guidance = None
        if posterior.uses_guidance:
            denoised, guidance = problem.guide(state, at, seen)
        else:
            denoised = prior.denoised(state, at)
        towards = expand(prior.denoised_coefficient[at] / prior.std[at], clean) * (clean - denoised)
        for part in even_chunks(len(whole), max_rows):
            carried = None if guidance is None else guidance[part]
            control = posterior.control(state[part], at[part], denoised[part], seen[part], carried)
            loss = (weight * log_ratio(towards[part], control).double()).sum()
            loss.backward()
            total += loss.detach()
    return ranks.total(total)
