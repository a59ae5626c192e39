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
from diffusion.newton import LEAST_CURVATURE, Product, newton_shift
from envs.asked import Asked
from envs.information import information, information_matrix
from envs.likelihoods import Likelihood

__all__ = ["Components", "GuidingLikelihood"]

BETAS = tuple(10.0 ** (power / 3) for power in range(-9, 0))
FIRST = 1000  # components to begin with, by f
LEAST, MOST, NUMBERS = 40, 200, 2_600_000
"""Components left at beta = 1, those of the largest evidence by Laplace's approximation: as many as have so many
numbers in their precisions, but at least and at most so many."""
FAR = 30.0  # nats of f, behind which a mode's width does not make good
ROUNDS = 20  # of steps at beta = 1, at most
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # of a step: the best is taken, or none
SETTLED = 1e-6  # nats that a step still gains
ITERATIONS, TOLERANCE = 16, 0.01  # conjugate gradients a step, and what they leave of the gradient
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
        self.means: Tensor
        self.log_weights: Tensor
        if isinstance(prior, MixtureDenoiser):
            self.event_shape, self.means, self.log_weights = prior.event_shape, prior.means, prior.log_weights
        else:
            self.event_shape, self.means = tuple(prior.mean.shape), prior.mean[None]
            self.log_weights = prior.mean.new_zeros(1)
        scale = prior.eigenvalues.sqrt()
        self.root = torch.diag(scale) if prior.eigenvectors is None else prior.eigenvectors * scale  # L
        self.most = max(LEAST, min(MOST, NUMBERS // len(self.root) ** 2))
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
        density = self.log_weights[row] + beta * torch.cat(found) - 0.5 * z.square().sum(1)
        return torch.where(density.isfinite(), density, -torch.inf)

    def gradient(self, value: Tensor) -> Tensor:
        """[N, D] L^T grad log p(y | x) at x = `value` [N, *D]."""
        with self._asked.about(value, "the gradient of "):
            return self._likelihood.gradient(value, self._seen(value)).flatten(1) @ self.root

    def precision(self, value: Tensor) -> Tensor:
        """[D, D] I + the mean of L^T H L over x = `value` [N, *D]; noise that is learned may bend either way."""
        total = self.root.new_zeros(self.root.shape)
        for each in value:
            with self._asked.about(each[None], "the residuals of "):
                total += information_matrix(self._likelihood, each, self._measurement, ROWS).nan_to_num() / len(value)
        matrix = self.root.T @ (0.5 * (total + total.T)) @ self.root
        identity = torch.eye(len(matrix)).to(matrix)
        if int(torch.linalg.cholesky_ex((1 - LEAST_CURVATURE) * identity + matrix).info):
            values, vectors = torch.linalg.eigh(matrix)
            matrix = (vectors * values.clamp_min(LEAST_CURVATURE - 1)) @ vectors.T
        return identity + matrix

    def modes(self) -> tuple[Tensor, Tensor]:
        """Components [C] that y speaks for, and z [C, D] at the modes of f."""
        row = torch.arange(len(self.means), device=self.means.device)
        z = self.root.new_zeros(len(row), len(self.root))
        row, z = _best(self.log_joint(row, z, BETAS[0]), FIRST, row, z)
        for beta in BETAS:
            z = self._stepped(row, z, beta)
        reached = self.log_joint(row, z)
        near = ~(reached < reached.max() - FAR)  # all of them, where none is a number
        row, z, reached = row[near], z[near], reached[near]
        width = torch.stack([torch.logdet(self.precision(value[None])) for value in self.placed(row, z)])
        row, z = _best(reached - 0.5 * width, self.most, row, z)
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
            uphill = beta * self.gradient(value) - at
            directions.append(newton_shift(uphill, _itself, self._information(value, beta), ITERATIONS, TOLERANCE))
        best, most = z, self.log_joint(row, z, beta)
        for length in LENGTHS:
            tried = z + length * torch.cat(directions)
            density = self.log_joint(row, tried, beta)
            best, most = torch.where((density > most)[:, None], tried, best), torch.maximum(density, most)
        return best

    def _information(self, value: Tensor, beta: float) -> Product:
        """The product v [N, D] -> beta L^T H L v at x = `value` [N, *D]."""
        with self._asked.about(value, "the residuals of "):
            product = information(self._likelihood, value, self._seen(value))
        return lambda vector: beta * product((vector @ self.root.T).reshape(value.shape)).flatten(1) @ self.root

    def _seen(self, value: Tensor) -> Tensor:
        return self._measurement.expand(len(value), *self._measurement.shape)


def _best(by: Tensor, most: int, row: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Of components `row` [N] at `z` [N, D] those of the largest `by` [N], `most` of them at most."""
    best = by.topk(min(most, len(by))).indices
    return row[best], z[best]


def _itself(vector: Tensor) -> Tensor:
    return vector
