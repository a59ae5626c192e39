r"""Joint simulation: x from a path tau of the prior, and a measurement of it, y' ~ p(y' | x).

The pair is a draw of p(tau) p(y' | x) = p(y') p(tau | y'), so tau is an exact draw of the posterior path measure at y',
whatever the posterior knows by now. A posterior that sees y is so trained on every measurement there could be:
amortised inference by simulation (Papamakarios and Murray 2016, arXiv 1605.06376; Cranmer et al. 2020, 1911.01429).

log Z(y') is not known, so that one such path has no residual unless log Z is learned as a network of y; it counts in
`learner.forward_kl`, pretraining and `mle`, which at exact paths follow the gradient of
E_y' KL(p(tau | y') || q(tau | y')). log b - log p = log p(y' | x) - log p(y') is given without the unknown last term,
so that all such paths have the importance weight 1 among each other.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from actors.rollout import Rollout, rollout
from diffusion.path import guide_path
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["JointSimulation"]


class JointSimulation:
    """Behaviour b = p(tau | y'), every path with its own y'."""

    origin = Origin.JOINT

    def __init__(self, problem: InverseProblem, *, guided: bool = True) -> None:
        """For a likelihood that can be simulated; without `guided` no guidance is computed along the paths."""
        if not problem.simulable:
            raise ValueError(
                f"joint needs a likelihood that measurements can be drawn from (a method `sample`); that of problem "
                f"{problem.name!r}, {type(problem.likelihood).__name__}, has none"
            )
        self._guided = guided

    def prepare(self, posterior: Posterior) -> None:
        """See `actors.exploration.SeesPosterior`."""
        if not posterior.sees_measurement:
            raise ValueError(
                "joint makes paths of as many measurements, which teach nothing to a posterior that does not see y; "
                "use form control with network mlp, or leave joint out of the mixture"
            )

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`; of `measurement_id` [B] only the number of entries counts."""
        made = rollout(problem, None, measurement_id, generator=generator)
        samples = made.states[:, -1]
        measurement = problem.simulate(samples, generator)
        guidance = None
        if self._guided and posterior.uses_guidance:
            guidance = guide_path(problem.guide, made.states, measurement)
        log_likelihood = problem.log_likelihood_of(samples, measurement)
        return dataclasses.replace(
            made,
            guidance=guidance,
            log_behaviour_ratio=log_likelihood.double(),
            log_likelihood=log_likelihood,
            measurement_id=-1 - torch.arange(len(measurement_id), device=samples.device),
            measurement=measurement,
        )
