r"""Laplace's approximation of a posterior under a Gaussian mixture: a Gaussian for each component that y speaks for.

The prior is sum_i w_i N(m_i, C), so the posterior is a mixture too, of N(x; m_i, C) p(y | x) / Z_i with the weights
w_i Z_i. With x = m_i + L z, L L^T = C, Gauss-Newton steps

    z <- z + (I + beta L^T H L)^-1 (beta L^T grad log p(y | x) - z)

find the mode x_i of each while beta rises from nearly zero to one, so that a likelihood which bends is met gently. H is
the information of x in y (`envs.information`). There

    S_i = L (I + L^T H L)^-1 L^T,    log Z_i = log p(y | x_i) - |z_i|^2 / 2 - log det(I + L^T H L) / 2,

exact for Gaussian noise behind a linear operator. Components that are far behind are left out on the way, and so are
those that have e^-12 of the weight of the first at the end.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch import Tensor

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.newton import LEAST_CURVATURE, Product, newton_shift
from diffusion.untied_mixture import UntiedMixtureDenoiser
from envs.asked import Asked
from envs.information import information
from envs.likelihoods import Likelihood, LikelihoodError

__all__ = ["laplace_approximation"]

POWERS = range(-12, 1)  # beta = 10^(power / 3)
KEPT = {-12: 1000, -6: 200, -3: 80, 0: 32}
"""How many components are left from that power on: those of the highest density of z and y."""
ROUNDS = 20  # of steps at beta = 1, at most
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # of a step: the best is taken, or none
SETTLED = 1e-3  # nats that a step still gains
ITERATIONS = 24  # conjugate gradients a step
NEGLIGIBLE_NATS = 12.0
ROWS = 64  # x that the likelihood is asked about at a time, as the graph of one can be large

_log = logging.getLogger(__name__)


class _Likelihood(Likelihood, Protocol):
    """A `DifferentiableLikelihood` that is a `StandardisedLikelihood` too."""

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor: ...

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor: ...


@torch.no_grad()
def laplace_approximation(
    prior: GaussianDenoiser | MixtureDenoiser,
    likelihood: _Likelihood,
    measurement: Tensor,
    asked: Asked,
) -> UntiedMixtureDenoiser:
    """The posterior given y = `measurement` [*Y]; `asked` is how the likelihood is.

    Raises:
        LikelihoodError: it is zero or no number at the modes of all components.
    """
    parts = _Components(prior, likelihood, measurement, asked)
    row, z = parts.modes()
    log_evidence, covariances = parts.gaussians(row, z)
    if not bool(torch.isfinite(log_evidence).any()):
        raise LikelihoodError(f"{asked.name} is zero, or no number, wherever Laplace's approximation looked for x")
    kept = log_evidence > log_evidence.max() - NEGLIGIBLE_NATS
    _log.info(
        "Laplace's approximation of the posterior has %d of the prior's %d components and a log p(y) of %.1f nats",
        int(kept.sum()),
        len(parts.means),
        float(log_evidence.logsumexp(0)),
    )
    means = parts.placed(row[kept], z[kept]).flatten(1)
    return UntiedMixtureDenoiser(means, covariances[kept], log_evidence[kept], parts.event_shape)


class _Components:
    """The components of the prior, each in its own coordinates z, in float64."""

    def __init__(
        self,
        prior: GaussianDenoiser | MixtureDenoiser,
        likelihood: _Likelihood,
        measurement: Tensor,
        asked: Asked,
    ) -> None:
        mixture = isinstance(prior, MixtureDenoiser)
        self.means = prior.means if mixture else prior.mean[None]
        self.log_weights = prior.log_weights if mixture else prior.mean.new_zeros(1)
        scale = prior.eigenvalues.sqrt()
        self.root = torch.diag(scale) if prior.eigenvectors is None else prior.eigenvectors * scale  # L
        self.event_shape = prior.event_shape if mixture else prior.mean.shape
        self.likelihood, self.measurement, self._asked = likelihood, measurement.double(), asked

    def placed(self, row: Tensor, z: Tensor) -> Tensor:
        """[N, *D] x of component `row` [N] at `z` [N, D]."""
        return (self.means[row].double() + z @ self.root.T).reshape(len(z), *self.event_shape)

    def modes(self) -> tuple[Tensor, Tensor]:
        """Components [C] that y speaks for, and the modes z [C, D] of their posteriors."""
        row = torch.arange(len(self.means), device=self.means.device)
        z = self.root.new_zeros(len(row), len(self.root))
        for power in POWERS:
            beta, most = 10.0 ** (power / 3), min(KEPT[first] for first in KEPT if first <= power)
            if len(row) > most:
                best = self._log_joint(row, z, beta).topk(most).indices
                row, z = row[best], z[best]
            z = self._uphill(row, z, beta)
        reached = self._log_joint(row, z, 1.0)
        for _ in range(ROUNDS):
            z, before = self._uphill(row, z, 1.0), reached
            reached = self._log_joint(row, z, 1.0)
            if bool((reached < before + SETTLED).all()):
                break
        return row, z

    def gaussians(self, row: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log w_i Z_i [N] and S_i [N, D, D] of components `row` [N] with modes at `z` [N, D]."""
        identity = torch.eye(z.shape[1]).to(z)
        halves, covariances = [], []
        for value in self.placed(row, z):
            bent = torch.cat([self._bent(value.expand(len(axes), *value.shape))(axes) for axes in identity.split(ROWS)])
            values, vectors = torch.linalg.eigh(0.5 * (bent + bent.T))
            values = 1 + values.clamp_min(LEAST_CURVATURE - 1)  # learned noise may have a curvature of either sign
            narrow = self.root @ (vectors / values.sqrt())
            covariances.append(narrow @ narrow.T)
            halves.append(0.5 * values.log().sum())
        return self._log_joint(row, z, 1.0) - torch.stack(halves), torch.stack(covariances)

    def _log_joint(self, row: Tensor, z: Tensor, beta: float) -> Tensor:
        """[N] log w_i + beta log p(y | x) - |z|^2 / 2, nats; -inf where it is no number."""
        found = []
        for value in self.placed(row, z).split(ROWS):
            with self._asked.about(value):
                found.append(self.likelihood.log_prob(value, self._seen(value)).double())
        return (self.log_weights[row] + beta * torch.cat(found) - 0.5 * z.square().sum(1)).nan_to_num(nan=-torch.inf)

    def _uphill(self, row: Tensor, z: Tensor, beta: float) -> Tensor:
        """[N, D] the best step from `z` [N, D] along Gauss and Newton's direction, or none."""
        directions = []
        for value, at in zip(self.placed(row, z).split(ROWS), z.split(ROWS), strict=True):
            with self._asked.about(value, "the gradient of "):
                gradient = self.likelihood.gradient(value, self._seen(value)).flatten(1) @ self.root
            directions.append(newton_shift(beta * gradient - at, _itself, self._bent(value, beta), ITERATIONS))
        best, most = z, self._log_joint(row, z, beta)
        for length in LENGTHS:
            tried = z + length * torch.cat(directions)
            density = self._log_joint(row, tried, beta)
            best, most = torch.where((density > most)[:, None], tried, best), torch.maximum(density, most)
        return best

    def _bent(self, value: Tensor, beta: float = 1.0) -> Product:
        """v [N, D] -> beta L^T H L v at x = `value` [N, *D]."""
        with self._asked.about(value, "the residuals of "):
            product = information(self.likelihood, value, self._seen(value))
        return lambda vector: beta * product((vector @ self.root.T).reshape(value.shape)).flatten(1) @ self.root

    def _seen(self, value: Tensor) -> Tensor:
        return self.measurement.expand(len(value), *self.measurement.shape)


def _itself(vector: Tensor) -> Tensor:
    return vector
