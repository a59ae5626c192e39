r"""Backtracking: a stored x is noised back to an index k and denoised again by the current posterior.

In path space these are two moves, each accepted by Metropolis and Hastings with the posterior of the chain as target
(`actors.path_search`): the whole path is noised anew from its x, and s_k+1..s_T are then redrawn by q given the new
s_k. A path so stays a sample of whatever it stood for, and keeps its importance weight (`actors.stored_paths`). The
depth T - k says how far a move goes: a deep one makes another x and is mostly refused, a shallow one the reverse.

Partial backtracking with a depth that adapts is due to Kim et al. 2024 (arXiv 2410.01432); noising and denoising an
interval several times is Restart sampling (Xu et al. 2023, arXiv 2306.14878), here with every round accepted or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from actors.exploration import StartBy
from actors.rollout import Rollout
from actors.stored_paths import StoredPaths
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem

__all__ = ["Backtracking", "BacktrackingConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktrackingConfig:
    """How far stored samples are taken back."""

    start_by: StartBy = "likelihood"
    """Stored trajectories to start from: the likely ones, those that fit worst (residual), or the newest (age)."""
    form: Literal["adaptive", "fixed", "restart"] = "adaptive"
    """adaptive (the depth follows `target_acceptance`), fixed, or restart (an interval, several times)."""
    depth: float = 0.5
    """Share of the transitions that are redrawn; where it starts from, if it adapts."""
    target_acceptance: float = 0.234
    """adaptive only: share of redrawn suffixes to be accepted; the best for random walks (Roberts et al. 1997)."""
    noisy_end: float = 0.3
    """restart only: where paths are redrawn from, as a fraction of the way from noise to x,"""
    clean_end: float = 0.7
    """and where they are noised from."""
    rounds: int = 4
    """restart only: how often."""

    def __post_init__(self) -> None:
        if not 0 < self.depth <= 1:
            raise ValueError(f"actor.backtracking.depth must be above 0 and at most 1, got {self.depth}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"actor.backtracking.target_acceptance must be between 0 and 1, got {self.target_acceptance}"
            )
        if not 0 <= self.noisy_end < self.clean_end <= 1:
            raise ValueError(
                "actor.backtracking.noisy_end must be at least 0 and below clean_end, that at most 1, "
                f"got {self.noisy_end} and {self.clean_end}"
            )
        if self.rounds < 1:
            raise ValueError(f"actor.backtracking.rounds must be at least 1, got {self.rounds}")


class Backtracking:
    """Behaviour: that of the start, followed by moves that leave the posterior invariant."""

    origin = Origin.BACKTRACKING

    def __init__(self, config: BacktrackingConfig, num_steps: int) -> None:
        self.config = config
        self.start_by: StartBy = config.start_by
        self._steps = num_steps
        self._depth = max(config.depth * num_steps, 1.0)  # transitions; rounded where it is used

    def explore_from(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        stored: Trajectory,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.FromStored`."""
        paths = StoredPaths(problem, stored, generator=generator, guided=posterior.uses_guidance)
        accepted = []
        for first, last in self._moves():
            paths.renoise_prefix(last)
            accepted.append(float(paths.redraw_suffix(first, posterior.control).double().mean()))
        acceptance = float(np.mean(accepted))
        if self.config.form == "adaptive":  # Robbins and Monro; the paths at hand see what those before them taught
            change = math.exp(acceptance - self.config.target_acceptance)
            self._depth = min(max(self._depth * change, 1.0), float(self._steps))
        return paths.paths(acceptance, guided=posterior.uses_guidance)

    def _moves(self) -> list[tuple[int, int]]:
        """(k to redraw from, index to noise from) of every round."""
        if self.config.form != "restart":
            return [(self._steps - round(self._depth), self._steps)]
        noisy = min(round(self.config.noisy_end * self._steps), self._steps - 1)
        clean = round(self.config.clean_end * self._steps)
        return [(noisy, max(clean, noisy + 1))] * self.config.rounds

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """See `actors.exploration.Stateful`."""
        return {}, {"depth": self._depth}

    def load_state_dict(
        self,
        problem: InverseProblem,
        arrays: dict[str, NDArray[Any]],
        scalars: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """See `actors.exploration.Stateful`."""
        self._depth = float(scalars["depth"])
