r"""Exact posterior of a Gaussian mixture under a linear Gaussian measurement.

For x ~ sum_i w_i N(mu_i, C) and y = A x + noise, noise ~ N(0, R):

    V = A C A^T + R,    K = C A^T V^-1,    mu'_i = mu_i + K (y - A mu_i),    C' = C - K A C,
    log w'_i = log w_i + log N(y; A mu_i, V) - log Z,    log Z = log sum_i w_i N(y; A mu_i, V).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MixturePosterior", "condition_mixture"]


@dataclass(frozen=True, slots=True, eq=False)
class MixturePosterior:
    """An exact posterior that is a Gaussian mixture with one shared covariance, and its evidence."""

    means: Tensor
    """[C, D] float64."""
    covariance: Tensor
    """[D, D] float64, shared by the components."""
    log_weights: Tensor
    """[C] float64, normalised."""
    log_partition: float
    """log p(y), nats."""
    event_shape: tuple[int, ...]
    """Shape of x, with D elements."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] exact draws, float64."""
        rows = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        factor = torch.linalg.cholesky(self.covariance)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[rows] + noise @ factor.T).reshape(count, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """[*D] posterior mean."""
        return (self.log_weights.exp() @ self.means).reshape(self.event_shape)

    @property
    def variance(self) -> Tensor:
        """[*D] posterior variance of every element of x."""
        weights = self.log_weights.exp()
        spread = weights @ (self.means - weights @ self.means).square()
        return (spread + self.covariance.diagonal()).reshape(self.event_shape)


def condition_mixture(
    means: Tensor,
    covariance: Tensor,
    log_weights: Tensor,
    matrix: Tensor,
    noise_std: float,
    measurement: Tensor,
    event_shape: tuple[int, ...],
) -> MixturePosterior:
    """The posterior of a mixture (`means` [C, D], shared `covariance` [D, D], `log_weights` [C]) given y.

    `matrix` is A [Y, D], `noise_std` the standard deviation of the noise, `measurement` y [Y]. All in float64; the
    weights need not be normalised.
    """
    means, covariance, matrix = means.double(), covariance.double(), matrix.double()
    log_weights = log_weights.double().log_softmax(0)
    noise = noise_std**2 * torch.eye(len(matrix), dtype=torch.float64)
    evidence_covariance = matrix @ covariance @ matrix.T + noise
    factor = torch.linalg.cholesky(evidence_covariance)
    gain = torch.cholesky_solve(matrix @ covariance, factor).T
    innovation = measurement.double() - means @ matrix.T
    whitened = torch.linalg.solve_triangular(factor, innovation.T, upper=False)
    log_evidence = (
        -0.5 * whitened.square().sum(0)
        - factor.diagonal().log().sum()
        - 0.5 * len(matrix) * math.log(2 * math.pi)
        + log_weights
    )
    log_partition = log_evidence.logsumexp(0)
    posterior = covariance - gain @ matrix @ covariance
    return MixturePosterior(
        means + innovation @ gain.T,
        0.5 * (posterior + posterior.T),
        log_evidence - log_partition,
        float(log_partition),
        event_shape,
    )
