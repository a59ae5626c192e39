r"""Annealed measurement: the posterior shown a noisy measurement early in the chain.

Condition-annealed sampling (CADS: Sadat et al. 2023, arXiv 2310.17347). Where q has settled on one mode too early, its
choice is made in the first steps. There it now sees, at time t from 1 (noise) to 0 (clean), t_k = 1 - k / T,

    y_k = sqrt(gamma) y + s sqrt(1 - gamma) rms(y) n,    n ~ N(0, I),
    gamma(t) = 1 for t <= tau_1,    (tau_2 - t) / (tau_2 - tau_1) in between,    0 for t >= tau_2,

and of y_k the share psi is brought back to the mean and standard deviation of y over its elements, so that a network
meets inputs of the size it knows: psi (mean(y) + std(y) (y_k - mean(y_k)) / std(y_k)) + (1 - psi) y_k. All that q makes
of y is made of y_k, the likelihood's gradient included. rms(y), the root mean square of y's elements, stands for the
unit variance of the paper's embeddings. n is drawn once a path, and not anew at every step: each path goes after one
other measurement.

The kernel of a path is that of q at its y_k, a Gaussian whose density given n is exact: log b(tau | n). The marginal is
a mixture over n that has no closed form, and it is not needed: n is an auxiliary variable, and

    E_n E_b(tau | n) [p(tau) p(y | x) f(tau) / b(tau | n)] = E_p [p(y | x) f(tau)],

so the weights with b(tau | n) have the expectations of those with b(tau), and a somewhat larger variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actors.rollout import Rollout, rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["AnnealedMeasurement", "AnnealedMeasurementConfig", "annealed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealedMeasurementConfig:
    """How noisy a measurement the posterior is shown (kind `annealed-measurement`)."""

    clean_until: float = 0.6
    """tau_1: up to this time, from 0 (clean x) to 1 (noise), the posterior sees y itself."""
    noise_from: float = 0.9
    """tau_2: from this time on it sees noise alone."""
    scale: float = 0.25
    """s, standard deviation of the noise in units of the root mean square of y."""
    rescaling: float = 1.0
    """psi, the share of the noisy measurement that is brought back to mean and standard deviation of y."""

    def __post_init__(self) -> None:
        if not 0 <= self.clean_until < self.noise_from <= 1:
            raise ValueError(
                "actor.annealed_measurement needs 0 <= clean_until < noise_from <= 1, "
                f"got {self.clean_until} and {self.noise_from}"
            )
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"actor.annealed_measurement.scale must be positive and finite, got {self.scale}")
        if not 0 <= self.rescaling <= 1:
            raise ValueError(f"actor.annealed_measurement.rescaling must be within [0, 1], got {self.rescaling}")

    def gamma(self, time: float) -> float:
        """Share of y in what is seen at `time`, 1 for noise and 0 for clean x."""
        return min(max((self.noise_from - time) / (self.noise_from - self.clean_until), 0.0), 1.0)


def annealed(measurement: Tensor, noise: Tensor, gamma: float, scale: float, rescaling: float) -> Tensor:
    """[N, *Y] what is seen of `measurement` [N, *Y] at `gamma` below 1, given n = `noise` [N, *Y]."""
    flat, direction = measurement.flatten(1), noise.flatten(1)
    size = flat.square().mean(1, keepdim=True).sqrt()
    seen = gamma**0.5 * flat + scale * (1 - gamma) ** 0.5 * size * direction
    if rescaling > 0:
        spread = seen.std(1, keepdim=True).clamp_min(torch.finfo(seen.dtype).tiny)
        standard = (seen - seen.mean(1, keepdim=True)) / spread
        back = flat.mean(1, keepdim=True) + flat.std(1, keepdim=True) * standard
        seen = rescaling * back + (1 - rescaling) * seen
    return seen.reshape(measurement.shape)


class AnnealedMeasurement:
    """Behaviour b(. | n) = q at the noisy measurements y_k, n drawn once a path."""

    origin = Origin.ANNEALED

    def __init__(self, config: AnnealedMeasurementConfig, problem: InverseProblem) -> None:
        """For measurements that are not all zero."""
        if not bool(problem.measurements.any()):
            raise ValueError(
                f"annealed-measurement adds noise in proportion to y, and every measurement of problem "
                f"{problem.name!r} is zero"
            )
        if config.rescaling > 0 and problem.measurements[0].numel() < 2:
            raise ValueError(
                f"the measurements of problem {problem.name!r} are single numbers, which have no standard deviation to "
                "be brought back to: set actor.annealed_measurement.rescaling to 0"
            )
        self.config = config

    def prepare(self, posterior: Posterior) -> None:
        """See `actors.exploration.SeesPosterior`."""
        if not posterior.sees_measurement:
            raise ValueError(
                "annealed-measurement changes the measurement that the posterior sees, and this form sees none; "
                "use form control, or leave annealed-measurement out of the mixture"
            )

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`; the guidance that is sent along is that at y itself."""
        config, steps = self.config, problem.num_steps
        noise = torch.randn(len(measurement_id), *problem.measurements.shape[1:], generator=generator)

        def control(
            state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
        ) -> Tensor:
            gamma = config.gamma(1 - int(step[0]) / steps)  # a rollout is at one index at a time
            if gamma == 1:
                return posterior.control(state, step, denoised, measurement, guidance)
            seen = annealed(measurement, noise.to(measurement), gamma, config.scale, config.rescaling)
            return posterior.control(state, step, denoised, seen)  # whose guidance it computes itself

        return rollout(problem, control, measurement_id, generator=generator, guided=posterior.uses_guidance)
