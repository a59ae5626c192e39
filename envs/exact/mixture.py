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


ROWS = 4_096  # of the means, in float64 at a time: of all images of a data set that would be gigabytes


@dataclass(frozen=True, slots=True, eq=False)
class MixturePosterior:
    """An exact posterior that is a Gaussian mixture with one shared covariance, and its evidence."""

    centres: Tensor
    """[C, D] of which the components' means are made: `slope` @ centre + `offset`, or the means themselves."""
    covariance: Tensor
    """[D, D] float64, shared by the components."""
    log_weights: Tensor
    """[C] float64, normalised."""
    log_partition: float
    """log p(y), nats."""
    event_shape: tuple[int, ...]
    """Shape of x, with D elements."""
    slope: Tensor | None = None
    """[D, D] float64: I - K A."""
    offset: Tensor | None = None
    """[D] float64: K y."""

    @property
    def means(self) -> Tensor:
        """[C, D] float64 means of the components."""
        return self._placed(self.centres)

    def _placed(self, centres: Tensor) -> Tensor:
        centres = centres.double()
        return centres if self.slope is None or self.offset is None else centres @ self.slope.T + self.offset

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] exact draws, float64."""
        rows = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        factor = torch.linalg.cholesky(self.covariance)
        noise = torch.randn(count, self.centres.shape[1], generator=generator, dtype=torch.float64)
        return (self._placed(self.centres[rows]) + noise @ factor.T).reshape(count, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """[*D] posterior mean."""
        weights, centres = self._weighty()
        return self._placed((weights @ centres)[None])[0].reshape(self.event_shape)

    @property
    def variance(self) -> Tensor:
        """[*D] posterior variance of every element of x."""
        weights, centres = self._weighty()
        means = self._placed(centres)
        spread = weights @ (means - weights @ means).square()
        return (spread + self.covariance.diagonal()).reshape(self.event_shape)

    def _weighty(self) -> tuple[Tensor, Tensor]:
        """Weights and centres, float64, of the components that have a weight in double precision."""
        rows = (self.log_weights > self.log_weights.max() - 60).nonzero().squeeze(1)
        return self.log_weights[rows].exp(), self.centres[rows].double()


def condition_mixture(
    means: Tensor,
    covariance: Tensor,
    log_weights: Tensor,
    matrix: Tensor,
    noise_std: float | Tensor,
    measurement: Tensor,
    event_shape: tuple[int, ...],
) -> MixturePosterior:
    """The posterior of a mixture (`means` [C, D], shared `covariance` [D, D], `log_weights` [C]) given y.

    `matrix` is A [Y, D], `noise_std` the standard deviation of the noise, a number or [Y], `measurement` y [Y]. All in
    float64; the weights need not be normalised.
    """
    covariance, matrix, measurement = covariance.double(), matrix.double(), measurement.double()
    log_weights = log_weights.double().log_softmax(0)
    noise = torch.as_tensor(noise_std, dtype=torch.float64).expand(len(matrix)).square().diag()
    factor = torch.linalg.cholesky(matrix @ covariance @ matrix.T + noise)
    gain = torch.cholesky_solve(matrix @ covariance, factor).T
    whitening = torch.linalg.solve_triangular(factor, matrix, upper=False)  # L^-1 A
    whitened = torch.linalg.solve_triangular(factor, measurement[:, None], upper=False).squeeze(1)
    squares = [(whitened - part.double() @ whitening.T).square().sum(1) for part in means.split(ROWS)]
    constant = factor.diagonal().log().sum() + 0.5 * len(matrix) * math.log(2 * math.pi)
    log_evidence = log_weights - 0.5 * torch.cat(squares) - constant
    log_partition = log_evidence.logsumexp(0)
    posterior = covariance - gain @ matrix @ covariance
    return MixturePosterior(
        means,
        0.5 * (posterior + posterior.T),
        log_evidence - log_partition,
        float(log_partition),
        event_shape,
        torch.eye(len(covariance), dtype=torch.float64) - gain @ matrix,
        gain @ measurement,
    )
