"""On-policy rollouts: trajectories of the current posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.rollout import Rollout, rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["OnPolicy"]


class OnPolicy:
    """Behaviour b = q."""

    origin = Origin.ON_POLICY

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`."""
        return rollout(problem, posterior.control, measurement_id, generator=generator, guided=posterior.uses_guidance)
