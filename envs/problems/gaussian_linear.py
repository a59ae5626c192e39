"""`gaussian-linear`: Gaussian prior, linear Gaussian measurement; everything is exact for the discrete chain."""

from __future__ import annotations

import torch

from diffusion.denoiser import GaussianDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.chain import ChainPosterior
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from envs.problem import InverseProblem
from envs.registry import register

__all__ = ["gaussian_linear"]


@register("gaussian-linear")
def gaussian_linear(
    *,
    dim: int = 16,
    measurement_dim: int = 8,
    noise_std: float = 0.5,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Gaussian x in `dim` dimensions, its covariance's eigenvalues from 0.25 to 2; y = A x + noise.

    A has `measurement_dim` rows. Mean, eigenvectors, A, the true x and the noise are drawn with `seed`.
    """
    if not 1 <= measurement_dim <= dim:
        raise ValueError(f"measurement_dim must be within 1..dim = {dim}, got {measurement_dim}")
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    eigenvalues = torch.linspace(0.25, 2.0, dim, dtype=torch.float64)
    mean = 0.5 * torch.randn(dim, generator=generator, dtype=torch.float64)
    denoiser = GaussianDenoiser(mean, basis * eigenvalues @ basis.T)
    levels = make_schedule(schedule, num_steps)
    prior = Prior(denoiser, levels, (dim,), denoiser.denoising_variance)
    matrix = torch.randn(measurement_dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    likelihood = GaussianLikelihood(Matrix(matrix), noise_std)
    truth = denoiser.sample(1, generator)
    return InverseProblem(
        name="gaussian-linear",
        prior=prior,
        likelihood=likelihood,
        measurements=likelihood.sample(truth, generator).float(),
        truth=truth.float(),
        solve=lambda measurement: (ChainPosterior(prior, matrix, noise_std, measurement), None),
    ).solved()
