"""What a kind of exploration is: a way to make trajectories. Each kind is one file and one line of `EXPLORATIONS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.rollout import Rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem

__all__ = ["Exploration", "FromStored", "SeesPosterior", "StartBy", "Starts", "Stateful"]

StartBy = Literal["likelihood", "residual", "age"]
"""Which stored trajectories to start from: the likely ones, those that fit worst, or the newest."""

Starts = Callable[[int, StartBy], Trajectory | None]
"""(count, by) -> that many stored trajectories, or None while there are none."""


class Exploration(Protocol):
    """One kind of actor behaviour."""

    @property
    def origin(self) -> Origin:
        """What its trajectories are marked with."""
        ...

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """One trajectory for every entry of `measurement_id` [B]; `progress` (0 to 1) is how far the run is."""
        ...


@runtime_checkable
class FromStored(Protocol):
    """A kind of exploration that goes on from trajectories in replay."""

    start_by: StartBy

    @property
    def origin(self) -> Origin:
        """What its trajectories are marked with."""
        ...

    def explore_from(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        stored: Trajectory,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """One new trajectory for every one `stored`, of the same measurement."""
        ...


@runtime_checkable
class SeesPosterior(Protocol):
    """A kind of exploration that depends on what the posterior is."""

    def prepare(self, posterior: Posterior) -> None:
        """Called once, with the posterior as it is before any training: equal to the prior. To be copied, not kept.

        Raises:
            ValueError: no use with this posterior; the reason.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """A kind of exploration that carries something from turn to turn, which a checkpoint has to hold."""

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """(arrays, scalars fit for JSON) that `load_state_dict` restores bit for bit."""
        ...

    def load_state_dict(
        self,
        problem: InverseProblem,
        arrays: dict[str, NDArray[Any]],
        scalars: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """Restores `state_dict`; draws go on from `generator`, which the actor restores itself."""
        ...
