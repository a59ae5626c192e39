"""Path search as a kind of exploration, of a population that every actor keeps, or of paths that come from replay.

A population starts from the prior and is tempered to the posterior in its first turns; in every turn it is moved, with
the current posterior as one of the kernels that propose. What it hands on is always a sample of pi_beta, so its
importance weight is p(y | x)^(1 - beta) times the evidence, and replay can draw by it.

Paths from replay are moved at beta = 1 and keep the weight they came with (`actors.stored_paths`). Which moves carry
paths far, and the gains of the guided kernel, are learned from turn to turn: what moves paths is never fitted to them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.exploration import StartBy
from actors.path_search import PathSearch
from actors.rollout import Rollout
from actors.stored_paths import StoredPaths
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem

__all__ = ["PathSearchConfig", "PathSearcher", "StoredPathSearcher", "path_searcher"]

POSSIBLE = 0.1  # share of paths of which the likelihood is not zero, below which a batch teaches nothing
SETTLING = 100  # sweeps in which a population may adapt its moves; at beta = 1 thereafter it does not


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSearchConfig:
    """What is moved, and how much."""

    population: int | None = None
    """Paths that an actor keeps of every measurement, a multiple of `actor.batch_size`; null: just as many. They are
    tempered together. From then on a batch of them at a time is moved and handed on."""
    sweeps: int | None = None
    """Moves of the paths before they are handed on; null: until they have mostly forgotten where they were, at most
    20."""
    start_by: StartBy | None = None
    """null (a population of its own that starts from the prior), or which stored trajectories to start from: the likely
    ones (likelihood), those that fit worst (residual), or the newest (age)."""

    def __post_init__(self) -> None:
        if self.sweeps is not None and self.sweeps < 1:
            raise ValueError(f"actor.path_search.sweeps must be at least 1, got {self.sweeps}")
        if self.population is not None and self.start_by is not None:
            raise ValueError(
                f"actor.path_search.population is of paths that an actor keeps; with start_by {self.start_by} it keeps "
                f"none, got {self.population}"
            )


class PathSearcher:
    """Behaviour b = pi_beta, up to what the population still owes to mixing."""

    origin = Origin.PATH_SEARCH

    def __init__(self, config: PathSearchConfig) -> None:
        self.config = config
        self._populations: dict[int, deque[PathSearch]] = {}  # of every measurement, whose turn it is first

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`; all paths are of the first measurement in `measurement_id`."""
        row, count = int(measurement_id[0]), len(measurement_id)
        if row not in self._populations:
            whole = PathSearch(problem, row, self.config.population or count, generator=generator)
            self._populations[row] = deque([whole])
        waiting = self._populations[row]
        if waiting[0].beta == 1 and len(waiting[0].states) > count:
            waiting = self._populations[row] = deque(waiting[0].split(count))
        search = waiting[0]
        waiting.rotate(-1)
        if search.beta < 1:
            accepted = self._temper(search)
        else:
            search.adapting = search.sweeps < search.tempered + SETTLING
            accepted = search.settle(posterior.control, self.config.sweeps)
        made = search.paths(accepted, guided=posterior.uses_guidance)
        if len(search.states) == count:
            return made
        return made.take(torch.randperm(len(search.states), generator=generator)[:count])

    @staticmethod
    def _temper(search: PathSearch) -> float:
        """A step towards the posterior, or as many as lead to possible paths; the share that was accepted."""
        while True:
            search.temper()
            accepted = search.settle()
            possible = float(torch.isfinite(search.log_likelihood).double().mean())
            if search.beta == 1 or possible >= POSSIBLE:
                return accepted

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """See `actors.exploration.Stateful`."""
        arrays: dict[str, NDArray[Any]] = {}
        scalars: dict[str, Any] = {"populations": {}}
        for row, searches in self._populations.items():
            scalars["populations"][str(row)] = []
            for place, search in enumerate(searches):
                tensors, numbers = search.state_dict()
                arrays |= {f"{row}.{place}.{name}": value.cpu().numpy().copy() for name, value in tensors.items()}
                scalars["populations"][str(row)].append(numbers)
        return arrays, scalars

    def load_state_dict(
        self,
        problem: InverseProblem,
        arrays: dict[str, NDArray[Any]],
        scalars: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """See `actors.exploration.Stateful`."""
        self._populations = {}
        for row, searches in scalars["populations"].items():
            waiting = self._populations[int(row)] = deque()
            for place, numbers in enumerate(searches):
                prefix = f"{row}.{place}."
                own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
                tensors = {name: torch.as_tensor(np.array(value)) for name, value in own.items()}
                waiting.append(PathSearch.restore(problem, int(row), tensors, numbers, generator))


class StoredPathSearcher:
    """Behaviour: that of the start, followed by moves that leave the posterior invariant."""

    origin = Origin.PATH_SEARCH

    def __init__(self, start_by: StartBy, sweeps: int | None) -> None:
        self.start_by: StartBy = start_by
        self._sweeps = sweeps
        self._experience: dict[str, Tensor] = {}

    def explore_from(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        stored: Trajectory,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.FromStored`."""
        paths = StoredPaths(problem, stored, generator=generator, guided=problem.gradient is not None)
        paths.take_experience(self._experience)
        paths.adapting = paths.sweeps < SETTLING
        accepted = paths.settle(posterior.control, self._sweeps)
        if paths.adapting:
            paths.fit_guide()  # for those who come next
        self._experience = paths.experience()
        return paths.paths(accepted, guided=posterior.uses_guidance)

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """See `actors.exploration.Stateful`."""
        return {name: value.cpu().numpy().copy() for name, value in self._experience.items()}, {}

    def load_state_dict(
        self,
        problem: InverseProblem,
        arrays: dict[str, NDArray[Any]],
        scalars: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """See `actors.exploration.Stateful`."""
        self._experience = {name: torch.as_tensor(np.array(value)) for name, value in arrays.items()}


def path_searcher(config: PathSearchConfig) -> PathSearcher | StoredPathSearcher:
    """The one that `config` asks for."""
    if config.start_by is None:
        return PathSearcher(config)
    return StoredPathSearcher(config.start_by, config.sweeps)
