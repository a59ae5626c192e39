"""What a kind of exploration is: a way to make trajectories. Each kind is one file and one line of `EXPLORATIONS`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from actors.rollout import Rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["Exploration"]


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
