r"""`gmm-25-to-9`: the toy of the method's paper (Venkatraman et al. 2024, arXiv 2405.20971), with log Z = 0.

Prior: 25 equal Gaussians of variance 0.3 on the grid {-10, -5, 0, 5, 10}^2. Posterior: nine of them with given weights.
The "likelihood" is their ratio, log p(y | x) = log target(x) - log prior(x), so that Z = E_prior[target / prior] = 1.
There is no measurement: y is a single zero.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.mixture import MixturePosterior
from envs.problem import Classes, InverseProblem
from envs.registry import register

__all__ = ["DensityRatio", "gmm_25_to_9"]

VARIANCE = 0.3
GRID = (-10.0, -5.0, 0.0, 5.0, 10.0)
TARGET_MEANS = ((-10, -5), (-5, -10), (-5, 0), (10, -5), (0, 0), (0, 5), (5, -5), (5, 0), (5, 10))
TARGET_WEIGHTS = (4, 10, 4, 5, 10, 5, 4, 15, 4)
# Standard deviation of s_0: half of the distance between neighbours, where a state decides for one of them. At the
# data's own 7.1 two thirds of the steps decide nothing, and the posterior's denoiser as control loses 0.34 nats in 50
# steps instead of 0.15.
BASE_STD = 2.5


class DensityRatio(nn.Module):
    """log target - log prior of two mixtures with the same component variance; y is ignored."""

    measurement_shape: tuple[int, ...] = (1,)

    def __init__(self, target: MixtureDenoiser, prior: MixtureDenoiser) -> None:
        super().__init__()
        self.target = target
        self.prior = prior

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N] log target(x) - log prior(x) for x = `value` [N, D], nats."""
        return (self.target.log_prob(value) - self.prior.log_prob(value)).to(value)

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, D] gradient: the difference of the expected means over the variance, as -x cancels."""
        target = self.target.classify(value) @ self.target.means
        prior = self.prior.classify(value) @ self.prior.means
        return ((target - prior) / self.prior.eigenvalues).to(value)


@register("gmm-25-to-9")
def gmm_25_to_9(*, num_steps: int = 50, schedule: str = "vp-cosine-zero-snr") -> InverseProblem:
    """The 25-mode prior and 9-mode posterior; see the module's docstring."""
    means = torch.tensor(list(itertools.product(GRID, GRID)), dtype=torch.float64)
    denoiser = MixtureDenoiser(means, VARIANCE)
    target_means = torch.tensor(TARGET_MEANS, dtype=torch.float64)
    log_weights = torch.tensor(TARGET_WEIGHTS, dtype=torch.float64).log()
    target = MixtureDenoiser(target_means, VARIANCE, log_weights)
    data_std = float((means.var(0, correction=0).mean() + VARIANCE).sqrt())
    levels = make_schedule(schedule, num_steps, scale=BASE_STD)
    prior = Prior(denoiser, levels, (2,), denoiser.denoising_variance, data_std)
    exact = MixturePosterior(target_means, target.covariance, target.log_weights, 0.0, (2,))
    weights = torch.zeros(25, dtype=torch.float64)
    rows = (means[:, None] == target_means).all(2).double().argmax(0)
    weights[rows] = target.log_weights.exp()
    return InverseProblem(
        name="gmm-25-to-9",
        prior=prior,
        likelihood=DensityRatio(target, denoiser),
        measurements=torch.zeros(1, 1),
        exact=(exact,),
        classes=Classes(
            tuple(f"({x:.0f}, {y:.0f})" for x, y in means.tolist()),
            denoiser.classify,
            weights[None],
        ),
    )
