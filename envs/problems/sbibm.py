r"""Tasks of the benchmark of simulation-based inference whose likelihood is known (Lueckmann et al. 2021, 2101.04653).

    sbibm-gaussian-linear           x ~ N(0, 0.1 I) in 10 dimensions,        y ~ N(x, 0.1 I)
    sbibm-gaussian-linear-uniform   x uniform in [-1, 1]^10,                 y ~ N(x, 0.1 I)
    sbibm-gaussian-mixture          x uniform in [-10, 10]^2,                y ~ N(x, I) / 2 + N(x, 0.01 I) / 2
    sbibm-slcp                      x uniform in [-3, 3]^5,                  y: four points of a Gaussian in the plane
    sbibm-bernoulli-glm             x ~ N(0, smooth) in 10 dimensions,       y: 100 spikes or none, a linear model's

`observation` 1 to 10 is one of the published ones, read from $RTB_DATA; 0 is drawn here, with `seed`. The published
reference draws of their posteriors are compared with in `benchmarks/sbibm.py`; the first three are also known exactly.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffusion.box_denoiser import BoxDenoiser
from diffusion.denoiser import GaussianDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.data import data_file
from envs.exact.box import BoxPosterior
from envs.exact.chain import ChainPosterior
from envs.likelihoods import (
    AutogradLikelihood,
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    SimulableLikelihood,
)
from envs.operators import Matrix
from envs.problem import InverseProblem, Solve
from envs.registry import register

__all__ = [
    "SOURCE",
    "bernoulli_glm",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "simple_likelihood",
]

SOURCE = "https://github.com/sbi-benchmark/sbibm, folder sbibm/tasks/<task>/files, as sbibm_reference/<task>"
SCHEDULE = "vp-cosine-zero-snr"


@register("sbibm-gaussian-linear")
def gaussian_linear(*, observation: int = 0, num_steps: int = 50, seed: int = 0) -> InverseProblem:
    """The mean of a Gaussian in 10 dimensions, from one draw of it."""
    denoiser, noise_std, matrix = GaussianDenoiser(torch.zeros(10), 0.1), 0.1**0.5, torch.eye(10)
    prior = Prior(denoiser, make_schedule(SCHEDULE, num_steps, scale=0.1**0.5), (10,), 0.1, 0.1**0.5)
    likelihood = GaussianLikelihood(Matrix(matrix), noise_std)
    return _problem(
        "gaussian_linear",
        prior,
        likelihood,
        observation,
        seed,
        lambda measurement: (ChainPosterior(prior, matrix, noise_std, measurement), None),
    )


@register("sbibm-gaussian-linear-uniform")
def gaussian_linear_uniform(*, observation: int = 0, num_steps: int = 50, seed: int = 0) -> InverseProblem:
    """The same for a mean that is uniform in a box, at whose walls the posterior is cut off."""
    prior, noise_std = _box(10, 1.0, num_steps), torch.tensor([0.1**0.5])
    return _problem(
        "gaussian_linear_uniform",
        prior,
        GaussianLikelihood(Matrix(torch.eye(10)), float(noise_std)),
        observation,
        seed,
        lambda measurement: (_exact(prior, measurement, noise_std, torch.ones(1)), None),
    )


class _TwoSizes(AutogradLikelihood):
    """y ~ N(x, I) / 2 + N(x, 0.01 I) / 2 in the plane."""

    measurement_shape: tuple[int, ...] = (2,)
    sizes = (1.0, 0.1)

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        square = (measurement.to(value) - value).square().sum(1)
        each = [-0.5 * square / size**2 - 2 * math.log(size) for size in self.sizes]
        return torch.stack(each).logsumexp(0) - math.log(2 * len(self.sizes) * math.pi)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        row = torch.randint(len(self.sizes), (len(value), 1), generator=generator)
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value + torch.tensor(self.sizes, dtype=value.dtype)[row] * noise


@register("sbibm-gaussian-mixture")
def gaussian_mixture(*, observation: int = 0, num_steps: int = 50, seed: int = 0) -> InverseProblem:
    """The common mean of a wide and a narrow Gaussian in the plane, from one draw of either."""
    prior, sizes = _box(2, 10.0, num_steps), torch.tensor(_TwoSizes.sizes)
    return _problem(
        "gaussian_mixture",
        prior,
        _TwoSizes(),
        observation,
        seed,
        lambda measurement: (_exact(prior, measurement, sizes, torch.full((2,), 0.5)), None),
    )


class _FourPoints(AutogradLikelihood):
    """Four draws of a Gaussian of mean (x_1, x_2), standard deviations x_3^2 and x_4^2, and correlation tanh x_5."""

    measurement_shape: tuple[int, ...] = (8,)
    jitter = 1e-6  # on the diagonal of the covariance

    def _factor(self, value: Tensor) -> Tensor:
        first, second, correlation = value[:, 2].square(), value[:, 3].square(), value[:, 4].tanh()
        across = correlation * first * second
        rows = [first.square() + self.jitter, across, across, second.square() + self.jitter]
        return torch.linalg.cholesky(torch.stack(rows, 1).reshape(-1, 2, 2))

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        exact = value.double()  # of nearly singular covariances
        factor = self._factor(exact)
        residual = measurement.to(exact).reshape(-1, 4, 2) - exact[:, None, :2]
        white = torch.linalg.solve_triangular(factor, residual.transpose(1, 2), upper=False)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return (-0.5 * white.square().sum((1, 2)) - 4 * log_det - 4 * math.log(2 * math.pi)).to(value)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(len(value), 4, 2, generator=generator, dtype=value.dtype)
        return (value[:, None, :2] + noise @ self._factor(value).transpose(1, 2)).flatten(1)


@register("sbibm-slcp")
def simple_likelihood(*, observation: int = 0, num_steps: int = 50, seed: int = 0) -> InverseProblem:
    """Simple likelihood, complex posterior: mean and covariance of a Gaussian from four points, with four modes."""
    return _problem("slcp", _box(5, 3.0, num_steps), _FourPoints(), observation, seed)


@register("sbibm-bernoulli-glm")
def bernoulli_glm(*, observation: int = 0, num_steps: int = 50, seed: int = 0) -> InverseProblem:
    """Offset and filter of a neuron that answers white noise with spikes; y is the train of 100, not its summary."""
    stimulus = torch.from_numpy(np.random.RandomState(42).randn(100)).float().double()
    design = torch.zeros(100, 10, dtype=torch.float64)
    design[:, 0] = 1
    for lag in range(9):
        design[lag:, 1 + lag] = stimulus[: 100 - lag]
    # Second differences of the filter are small, less so for small lags.
    difference = torch.eye(9, dtype=torch.float64) - torch.diag(torch.ones(8, dtype=torch.float64), -1)
    factor = difference @ difference + torch.diag((torch.arange(9, dtype=torch.float64) / 9).sqrt())
    precision = torch.zeros(10, 10, dtype=torch.float64)
    precision[0, 0] = 0.5
    precision[1:, 1:] = factor.T @ factor
    denoiser = GaussianDenoiser(torch.zeros(10), torch.linalg.inv(precision))
    data_std = float(denoiser.eigenvalues.mean().sqrt())
    schedule = make_schedule(SCHEDULE, num_steps, scale=data_std)
    prior = Prior(denoiser, schedule, (10,), denoiser.denoising_variance, data_std)
    return _problem("bernoulli_glm", prior, BernoulliLikelihood(Matrix(design)), observation, seed)


def _box(dim: int, bound: float, num_steps: int) -> Prior:
    """A chain whose x is uniform on [-bound, bound]^dim."""
    denoiser = BoxDenoiser(torch.full((dim,), -bound), torch.full((dim,), bound))
    data_std = bound / 3**0.5
    schedule = make_schedule(SCHEDULE, num_steps, scale=data_std)
    return Prior(denoiser, schedule, (dim,), denoiser.denoising_variance, data_std)


def _exact(prior: Prior, measurement: Tensor, sizes: Tensor, weights: Tensor) -> BoxPosterior:
    denoiser = prior.denoiser
    assert isinstance(denoiser, BoxDenoiser)
    return BoxPosterior(denoiser.low, denoiser.high, measurement, sizes, weights)


def _problem(
    task: str, prior: Prior, likelihood: Likelihood, observation: int, seed: int, solve: Solve | None = None
) -> InverseProblem:
    if not 0 <= observation <= 10:
        raise ValueError(f"observation must be 1..10 for a published one, or 0, got {observation}")
    if observation:
        name = "observation_raw" if task == "bernoulli_glm" else "observation"
        measurement, truth = (
            torch.from_numpy(np.loadtxt(_published(task, observation, file), delimiter=",", skiprows=1, ndmin=2))
            for file in (f"{name}.csv", "true_parameters.csv")
        )
    else:
        assert isinstance(likelihood, SimulableLikelihood)
        generator = torch.Generator().manual_seed(seed)
        truth = prior.denoiser.sample(1, generator)  # type: ignore[operator]
        measurement = likelihood.sample(truth, generator)
    return InverseProblem(
        name=f"sbibm-{task.replace('_', '-')}",
        prior=prior,
        likelihood=likelihood,
        measurements=measurement.float(),
        truth=truth.float(),
        solve=solve,
    ).solved()


def _published(task: str, observation: int, file: str) -> str:
    return str(data_file("sbibm_reference", task, f"num_observation_{observation}", file, source=SOURCE))
