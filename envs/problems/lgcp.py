r"""`lgcp`: a log-Gaussian Cox process on a grid (Moller et al. 1998), of 1,600 dimensions as published.

x is the log intensity in the cells of a g x g grid on the unit square, a Gaussian process; counts are Poisson:

    x ~ N(mu, K),    K_ij = v exp(-|i - j| / (g b)),    v = 1.91,  b = 1/33,  mu = log(126) - v / 2,
    y_i ~ Poisson(a exp(x_i)),    a = 1 / g^2,    |i - j| in cells.

Sampler papers leave out the parts of the density that do not depend on x: their log Z is log p(y) + sum log y_i! -
126 log a for 126 points. Here it is the evidence log p(y).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import GaussianDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.problem import InverseProblem
from envs.registry import register

__all__ = ["CoxLikelihood", "lgcp"]

VARIANCE, RANGE, MEAN_POINTS = 1.91, 1 / 33, 126.0


class CoxLikelihood:
    """y_i ~ Poisson(`area` exp(x_i)), i = 1..`cells`; normalised over the counts."""

    def __init__(self, cells: int, area: float) -> None:
        self.measurement_shape: tuple[int, ...] = (cells,)
        self.area = area

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.Likelihood`; in float64, as thousands of cells are summed."""
        value, counts = value.double(), measurement.double()
        terms = counts * (value + math.log(self.area)) - self.area * value.exp() - torch.lgamma(counts + 1)
        return terms.sum(1).float()

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.DifferentiableLikelihood`: y_i - a exp(x_i)."""
        return measurement.to(value) - self.area * value.exp()

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `envs.likelihoods.SimulableLikelihood`."""
        return torch.poisson(self.area * value.exp(), generator=generator)


def _covariance(grid: int) -> Tensor:
    """K [g^2, g^2], float64."""
    line = torch.arange(grid, dtype=torch.float64)
    cells = torch.cartesian_prod(line, line)
    return VARIANCE * torch.exp(-torch.cdist(cells, cells) / (grid * RANGE))


def _counts(points: str, grid: int) -> Tensor:
    """[1, g^2] float32 number of points in each cell, the first coordinate being that of the rows."""
    path = Path(points)
    if not path.is_file():
        raise ValueError(
            f"lgcp: there is no file {points}; it must be a CSV of two columns, coordinates in the unit square. The "
            "126 pine saplings of the published benchmark are the data set finpines of R's spatstat, with (x + 5) / 10 "
            "and (y + 8) / 10"
        )
    try:
        where = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"lgcp: {points} must be a CSV of numbers without a header: {error}") from None
    if where.shape[1:] != (2,) or not ((where >= 0) & (where <= 1)).all():
        raise ValueError(f"lgcp: {points} must hold two columns within [0, 1], got shape {where.shape}")
    cell = np.minimum((where * grid).astype(np.int64), grid - 1)
    counts = np.bincount(cell[:, 0] * grid + cell[:, 1], minlength=grid * grid)
    return torch.from_numpy(counts).float()[None]


@register("lgcp")
def lgcp(
    *,
    grid: int = 40,
    points: str | None = None,
    num_steps: int = 100,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A `grid` x `grid` log intensity from the points in the CSV file `points`, or from ones simulated with `seed`."""
    if grid < 2:
        raise ValueError(f"lgcp needs grid >= 2, got {grid}")
    cells = grid * grid
    mean = torch.full((cells,), math.log(MEAN_POINTS) - VARIANCE / 2, dtype=torch.float64)
    covariance = _covariance(grid)
    denoiser = GaussianDenoiser(mean, covariance)
    data_std = math.sqrt(VARIANCE)
    prior = Prior(
        denoiser,
        make_schedule(schedule, num_steps, scale=data_std),
        (cells,),
        denoiser.denoising_variance,
        data_std,
    )
    likelihood, truth = CoxLikelihood(cells, 1 / cells), None
    if points is None:
        generator = torch.Generator().manual_seed(seed)
        # The grid is symmetric, so eigenvectors of K are not unique, and differ between processors; this root is.
        root = torch.linalg.cholesky(covariance)
        truth = mean + torch.randn(1, cells, generator=generator, dtype=torch.float64) @ root.T
        measurement = likelihood.sample(truth, generator).float()
    else:
        measurement = _counts(points, grid)
    return InverseProblem(
        name="lgcp",
        prior=prior,
        likelihood=likelihood,
        measurements=measurement,
        truth=None if truth is None else truth.float(),
        image_shape=(grid, grid),
        measurement_image=lambda value: value.reshape(grid, grid).float(),
    )
