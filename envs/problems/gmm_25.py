"""`gmm-25`: 25 equal Gaussians on a grid, sampled from a Gaussian base process; log Z = 0."""

from __future__ import annotations

import itertools

import torch

from diffusion.denoiser import MixtureDenoiser
from envs.energy import energy_problem
from envs.exact.mixture import MixturePosterior
from envs.problem import Classes, InverseProblem
from envs.registry import register

__all__ = ["gmm_25"]

VARIANCE = 0.3
# Half of the distance between neighbours, see `gmm-25-to-9`: with s_0 as wide as the data the control that denoises the
# target loses 0.23 nats in 100 steps, so 0.08.
START_STD = 2.5
GRID = (-10.0, -5.0, 0.0, 5.0, 10.0)


@register("gmm-25")
def gmm_25(*, num_steps: int = 100, schedule: str = "vp-cosine-zero-snr", base_std: float = 7.1) -> InverseProblem:
    """Variance 0.3 on {-10, -5, 0, 5, 10}^2: every mode counts 4 %."""
    means = torch.tensor(list(itertools.product(GRID, GRID)), dtype=torch.float64)
    target = MixtureDenoiser(means, VARIANCE)
    exact = MixturePosterior(means, target.covariance, target.log_weights, 0.0, (2,))
    names = tuple(f"({x:.0f}, {y:.0f})" for x, y in means.tolist())
    return energy_problem(
        "gmm-25",
        target.log_prob,
        2,
        base_std=base_std,
        num_steps=num_steps,
        schedule=schedule,
        start_std=START_STD,
        exact=exact,
        classes=Classes(names, target.classify, target.log_weights.exp()[None]),
    )
