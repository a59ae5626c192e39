"""`gmm-linear`: a Gaussian mixture prior under a linear Gaussian measurement that leaves several modes alive."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.mixture import MixturePosterior, condition_mixture
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from envs.problem import Classes, InverseProblem
from envs.registry import register

__all__ = ["gmm_linear"]


@register("gmm-linear")
def gmm_linear(
    *,
    dim: int = 16,
    modes: int = 8,
    component_std: float = 0.3,
    noise_std: float = 0.3,
    visibility: float = 1.5,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """`modes` equal Gaussians in `dim` dimensions; y = A x + noise sees half of the dimensions.

    In the unseen half the means are drawn from N(0, I), far apart; in the seen half they lie `visibility` noise
    standard deviations from the origin in random directions, so that y favours some modes and rules none out.
    Means, A, the true x and the noise are drawn with `seed`.
    """
    if dim < 2 or modes < 1:
        raise ValueError(f"gmm-linear needs dim >= 2 and modes >= 1, got {dim} and {modes}")
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    seen, unseen = basis[:, : dim // 2], basis[:, dim // 2 :]
    hidden_means = torch.randn(modes, dim - dim // 2, generator=generator, dtype=torch.float64)
    seen_means = torch.randn(modes, dim // 2, generator=generator, dtype=torch.float64)
    seen_means = visibility * noise_std * seen_means / seen_means.norm(dim=1, keepdim=True)
    means = hidden_means @ unseen.T + seen_means @ seen.T
    denoiser = MixtureDenoiser(means, component_std**2)
    data_std = float((means.var(0, correction=0).mean() + component_std**2).sqrt())
    levels = make_schedule(schedule, num_steps, scale=data_std)
    prior = Prior(denoiser, levels, (dim,), denoiser.denoising_variance, data_std)
    operator = Matrix(seen.T)
    likelihood = GaussianLikelihood(operator, noise_std)
    truth = denoiser.sample(1, generator)

    def solve(measurement: Tensor) -> tuple[MixturePosterior, Tensor]:
        covariance, log_weights = denoiser.covariance, denoiser.log_weights
        exact = condition_mixture(means, covariance, log_weights, operator.matrix, noise_std, measurement, (dim,))
        return exact, exact.log_weights.exp()

    return InverseProblem(
        name="gmm-linear",
        prior=prior,
        likelihood=likelihood,
        measurements=likelihood.sample(truth, generator).float(),
        truth=truth.float(),
        classes=Classes(tuple(f"mode {index}" for index in range(modes)), denoiser.classify),
        solve=solve,
    ).solved()
