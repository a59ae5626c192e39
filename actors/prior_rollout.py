"""Prior rollouts: trajectories of the prior. They cover what the posterior has forgotten."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.rollout import Rollout, rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["PriorRollout"]


class PriorRollout:
    """Behaviour b = p."""

    origin = Origin.PRIOR

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`; the importance weight of such a path is its likelihood."""
        return rollout(problem, None, measurement_id, generator=generator, guided=posterior.uses_guidance)
