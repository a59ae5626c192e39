r"""Modes of a posterior under a Gaussian mixture: one for each component that y speaks for.

The prior is sum_i w_i N(m_i, C). In coordinates of each component, x = m_i + L z with L L^T = C, the log density of x
and y is, but for a constant,

    f_i(z) = log w_i + log p(y | x) - |z|^2 / 2,

and Gauss-Newton steps with the information H of x in y (`envs.information`)

    z <- z + (I + beta L^T H L)^-1 (beta L^T grad log p(y | x) - z)

find its mode while beta rises from nearly zero to one, so that a likelihood which bends is met gently. Components that
are far behind are left out on the way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.newton import Product, newton_shift
from envs.asked import Asked
from envs.information import information, information_matrix
from envs.likelihoods import Likelihood

__all__ = ["Components", "GuidingLikelihood"]

POWERS = range(-12, 1)  # beta = 10^(power / 3)
KEPT = {-12: 1000, -6: 400, -3: 200, 0: 64}
"""How many components are left from that power on: those of the highest density of z and y."""
ROUNDS = 20  # of steps at beta = 1, at most
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # of a step: the best is taken, or none
SETTLED = 1e-3  # nats that a step still gains
ITERATIONS = 24  # conjugate gradients a step
ROWS = 128  # x that the likelihood is asked about at a time, as the graph of one can be large


class GuidingLikelihood(Likelihood, Protocol):
    """A `DifferentiableLikelihood` that is a `StandardisedLikelihood` too."""

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`."""
        ...

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`."""
        ...


class Components:
    """The components of a prior, given y, each in its own coordinates z, in float64."""

    def __init__(
        self,
        prior: GaussianDenoiser | MixtureDenoiser,
        likelihood: GuidingLikelihood,
        measurement: Tensor,
        asked: Asked,
    ) -> None:
        """For y = `measurement` [*Y]; `asked` is how the likelihood is."""
        mixture = isinstance(prior, MixtureDenoiser)
        self.event_shape = tuple(prior.event_shape if mixture else prior.mean.shape)
        self.means = prior.means if mixture else prior.mean[None]
        self.log_weights = prior.log_weights if mixture else prior.mean.new_zeros(1)
        scale = prior.eigenvalues.sqrt()
        self.root = torch.diag(scale) if prior.eigenvectors is None else prior.eigenvectors * scale  # L
        self._likelihood, self._measurement, self._asked = likelihood, measurement.double(), asked

    def placed(self, row: Tensor, z: Tensor) -> Tensor:
        """[N, *D] x of component `row` [N] at `z` [N, D]."""
        return (self.means[row].double() + z @ self.root.T).reshape(len(z), *self.event_shape)

    def log_joint(self, row: Tensor, z: Tensor, beta: float = 1.0) -> Tensor:
        """[N] f, log p(y | x) in it times `beta`, nats; -inf where that is no number."""
        found = []
        for value in self.placed(row, z).split(ROWS):
            with self._asked.about(value):
                found.append(self._likelihood.log_prob(value, self._seen(value)).double())
        return (self.log_weights[row] + beta * torch.cat(found) - 0.5 * z.square().sum(1)).nan_to_num(nan=-torch.inf)

    def gradient(self, value: Tensor) -> Tensor:
        """[N, D] L^T grad log p(y | x) at x = `value` [N, *D]."""
        with self._asked.about(value, "the gradient of "):
            return self._likelihood.gradient(value, self._seen(value)).flatten(1) @ self.root

    def information(self, value: Tensor) -> Product:
        """The product v [N, D] -> L^T H L v at x = `value` [N, *D]."""
        with self._asked.about(value, "the residuals of "):
            product = information(self._likelihood, value, self._seen(value))
        return lambda vector: product((vector @ self.root.T).reshape(value.shape)).flatten(1) @ self.root

    def information_matrix(self, value: Tensor) -> Tensor:
        """[D, D] the mean of L^T H L over x = `value` [N, *D]."""
        with self._asked.about(value, "the residuals of "):
            parts = [information_matrix(self._likelihood, each, self._measurement, ROWS) for each in value]
        mean = torch.stack(parts).mean(0)
        return self.root.T @ (0.5 * (mean + mean.T)) @ self.root

    def modes(self) -> tuple[Tensor, Tensor]:
        """Components [C] that y speaks for, and z [C, D] at the modes of f."""
        row = torch.arange(len(self.means), device=self.means.device)
        z = self.root.new_zeros(len(row), len(self.root))
        for power in POWERS:
            beta, most = 10.0 ** (power / 3), min(KEPT[first] for first in KEPT if first <= power)
            if len(row) > most:
                best = self.log_joint(row, z, beta).topk(most).indices
                row, z = row[best], z[best]
            z = self._stepped(row, z, beta)
        reached = self.log_joint(row, z)
        for _ in range(ROUNDS):
            z, before = self._stepped(row, z, 1.0), reached
            reached = self.log_joint(row, z)
            if bool((reached < before + SETTLED).all()):
                break
        return row, z

    def _stepped(self, row: Tensor, z: Tensor, beta: float) -> Tensor:
        """[N, D] the best of some steps from `z` [N, D] along Gauss and Newton's direction, or `z`."""
        directions = []
        for value, at in zip(self.placed(row, z).split(ROWS), z.split(ROWS), strict=True):
            product, uphill = self.information(value), beta * self.gradient(value) - at
            directions.append(newton_shift(uphill, _itself, lambda vector: beta * product(vector), ITERATIONS))
        best, most = z, self.log_joint(row, z, beta)
        for length in LENGTHS:
            tried = z + length * torch.cat(directions)
            density = self.log_joint(row, tried, beta)
            best, most = torch.where((density > most)[:, None], tried, best), torch.maximum(density, most)
        return best

    def _seen(self, value: Tensor) -> Tensor:
        return self._measurement.expand(len(value), *self._measurement.shape)


def _itself(vector: Tensor) -> Tensor:
    return vector
