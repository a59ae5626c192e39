r"""Pretraining: maximum likelihood on paths that stand for the posterior, a few transitions of each.

    L = -(1 / N) sum_i (T / K) sum_{k in S_i} log q(s_ik+1 | s_ik, y),

over the N paths that were drawn by importance or are exact, S_i being K of the T steps at equal distances. In
expectation this is KL(posterior || q) over whole paths, but for a constant, with log q averaged over the transition's
own noise as in `learner.gradient`. It needs no residual, so an update costs K / T of one that does, and it cannot lose
a mode that replay has: where the prior's rollouts or path search find all modes, this is the fast way to a posterior
that relative trajectory balance then only has to correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.posterior import Posterior
from learner.batch import PathBatch
from learner.gradient import denoising_log_ratio, denoising_share
from learner.subset import equally_spaced

__all__ = ["PretrainingConfig", "accumulate_denoising_gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """Maximum likelihood on paths drawn by importance, or exact, before relative trajectory balance."""

    until: float = 0.0
    """Fraction of the run that it takes; 0 is none."""
    batch_size: int = 512
    """Paths an update."""
    steps_per_path: int = 4
    """Transitions of each path, or all of them where the chain has no more."""

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ValueError(f"learner.pretraining.until must be within [0, 1], got {self.until}")
        if self.batch_size < 1 or self.steps_per_path < 1:
            raise ValueError(
                "learner.pretraining.batch_size and steps_per_path must be at least 1, "
                f"got {self.batch_size} and {self.steps_per_path}"
            )


def accumulate_denoising_gradient(posterior: Posterior, batch: PathBatch, steps_per_path: int, seed: int) -> Tensor:
    """Adds the gradient of L to the parameters' `.grad`; L [] without graph. `seed` chooses the steps."""
    count, steps = batch.states.shape[0], batch.states.shape[1] - 1
    chosen = min(steps_per_path, steps)
    generator = torch.Generator().manual_seed(seed)
    step = equally_spaced(count, steps, chosen, generator)
    row = torch.arange(count).repeat_interleave(chosen)
    share = denoising_share(batch)[row]
    loss = -(steps / chosen) * (share * denoising_log_ratio(posterior, batch, row, step.flatten()).double()).sum()
    loss.backward()
    return loss.detach()
