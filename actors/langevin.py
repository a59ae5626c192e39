r"""Langevin search: Metropolis-adjusted Langevin steps of x, led by the likelihood's gradient (MALA).

The density of x under a diffusion prior is not known, but that of the last transition is. With s_T-1 held fixed

    f(x) = log N(x; m_T-1(s_T-1), std_T-1^2 I) + log p(y | x)

is what the posterior of the chain is in x, up to a constant, and its gradient g costs one gradient of the likelihood. A
step of size h proposes

    x' = x + (h / 2) g(x) + sqrt(h) xi,   xi ~ N(0, I),

and takes x' with probability min(1, e^f(x') r(x | x') / (e^f(x) r(x' | x))), r being the density of the proposal
(Roberts and Tweedie 1996; Roberts and Rosenthal 1998, whose optimal acceptance is 0.574). After some steps the path
follows: s_0..s_T-1 are noised from the new x (`actors.path_search`), which lets the next steps go further. Both leave
the posterior of the chain invariant, so paths keep their importance weights (`actors.stored_paths`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.exploration import StartBy
from actors.path_weights import log_acceptance
from actors.rollout import Rollout
from actors.stored_paths import StoredPaths
from diffusion.kernel import normal_log_prob
from diffusion.posterior import LikelihoodGradient, Posterior
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem

__all__ = ["Langevin", "LangevinConfig", "Point", "log_step_weight"]

TARGET = 0.574  # acceptance; Roberts and Rosenthal 1998
# Step sizes h in units of std_T-1^2. From 4 on the drift alone diverges where the likelihood is flat; the smallest is
# for measurements whose noise is four orders of magnitude below the last transition's.
SMALLEST, FIRST, LARGEST = 1e-8, 0.5, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LangevinConfig:
    """How long stored samples follow the likelihood's gradient."""

    start_by: StartBy = "likelihood"
    """Stored trajectories to start from: the likely ones, those that fit worst (residual), or the newest (age)."""
    steps: int = 10
    """Langevin steps between two re-noisings of the path; each is one likelihood and one gradient."""
    rounds: int = 3
    """Such rounds before a path is handed on."""

    def __post_init__(self) -> None:
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"actor.langevin.{name} must be at least 1, got {getattr(self, name)}")


class Point(NamedTuple):
    """Where a chain is."""

    value: Tensor
    """[N, *D] x."""
    log_density: Tensor
    """[N] float64 f(x), up to a constant."""
    gradient: Tensor
    """[N, *D] g(x)."""


def log_step_weight(there: Point, here: Point, size: float) -> Tensor:
    """[N] float64 f(there) + log r(here | there), up to a constant: what MALA accepts by the ratio of."""
    back = here.value.double() - there.value.double() - 0.5 * size * there.gradient.double()
    return there.log_density - back.flatten(1).square().sum(1) / (2 * size)


class Langevin:
    """Behaviour: that of the start, followed by moves that leave the posterior invariant."""

    origin = Origin.LANGEVIN

    def __init__(self, config: LangevinConfig, problem: InverseProblem) -> None:
        """For a problem whose likelihood has a gradient."""
        if problem.gradient is None:
            raise ValueError(
                f"langevin follows the gradient of the likelihood, but that of problem {problem.name!r}, "
                f"{type(problem.likelihood).__name__}, has no method `gradient`; leave langevin out of actor.mixture"
            )
        self.config = config
        self.start_by: StartBy = config.start_by
        self._gradient: LikelihoodGradient = problem.gradient
        self._size = FIRST

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
        measurement = problem.measurements[paths.measurement_id]
        pull = self._gradient(paths.samples, measurement)
        accepted = []
        for _ in range(self.config.rounds):
            for _ in range(self.config.steps):
                taken, pull = self._step(paths, pull, measurement, generator)
                accepted.append(float(taken.double().mean()))
            paths.renoise_prefix(problem.num_steps)
        acceptance = float(np.mean(accepted))
        # Once a turn, by Robbins and Monro: a size that followed the paths at hand would leave nothing invariant.
        self._size = min(max(self._size * math.exp(acceptance - TARGET), SMALLEST), LARGEST)
        return paths.paths(acceptance, guided=posterior.uses_guidance)

    def _step(
        self, paths: StoredPaths, pull: Tensor, measurement: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(which took their proposal [N], the likelihood's gradient [N, *D] where they are now)."""
        mean, std = paths.last_transition()
        size = self._size * float(std[0]) ** 2

        def point(value: Tensor, log_likelihood: Tensor, pull: Tensor) -> Point:
            log_density = log_likelihood.double() + normal_log_prob(value.double(), mean.double(), std)
            return Point(value, log_density, (mean - value) / float(std[0]) ** 2 + pull)

        here = point(paths.samples, paths.log_likelihood, pull)
        noise = torch.randn(here.value.shape, generator=generator, dtype=here.value.dtype)
        value = here.value + 0.5 * size * here.gradient + math.sqrt(size) * noise
        there_pull = self._gradient(value, measurement)
        log_likelihood = paths.problem.log_likelihood(value, paths.measurement_id)
        there = point(value, log_likelihood, there_pull)
        uniform = torch.rand(len(value), generator=generator, dtype=torch.float64)
        taken = uniform.log() < log_acceptance(log_step_weight(there, here, size), log_step_weight(here, there, size))
        paths.replace_samples(taken, value, log_likelihood)
        return taken, torch.where(taken.reshape(-1, *([1] * (value.ndim - 1))), there_pull, pull)

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """See `actors.exploration.Stateful`."""
        return {}, {"size": self._size}

    def load_state_dict(
        self,
        problem: InverseProblem,
        arrays: dict[str, NDArray[Any]],
        scalars: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """See `actors.exploration.Stateful`."""
        self._size = float(scalars["size"])
