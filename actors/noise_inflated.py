"""Noise-inflated rollouts: the current posterior with its noise scaled up, scored with the true noise.

The factor falls linearly from `inflation` to 1 over the run, as exploration is worth most when little is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actors.rollout import Rollout, rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["NoiseInflated"]


class NoiseInflated:
    """Behaviour b = N(m_k + std_k u_k, (c std_k)^2 I)."""

    origin = Origin.NOISE_INFLATED

    def __init__(self, inflation: float) -> None:
        self.inflation = inflation

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`."""
        factor = 1.0 + (self.inflation - 1.0) * (1.0 - progress)
        return rollout(
            problem,
            posterior.control,
            measurement_id,
            inflation=factor,
            generator=generator,
            guided=posterior.uses_guidance,
        )
