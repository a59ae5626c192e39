r"""The information that a likelihood's mean and noise have of x: how sharply y tells x, as products with vectors.

    H = G^T G,    G = dz/dx at y = E[y | x],    z = (y - E[y | x]) / std(y | x),

where E[y | x] and the noise are those at x. For Gaussian noise behind a linear A it is A^T R^-1 A, for Poisson counts
of mean lambda(x) the sum over y of grad lambda grad lambda^T / lambda: Fisher's information. Of counts with read noise
or over a measured background it is at most that, and less where counts are few (of 0.3 expected over a background of
none, measured in a fifth of the time, a seventh). Of noise that is learned H is what Tweedie's
formula says at y, J^T (-Hessian of log p_n) J for J = dA/dx, smoothed as its gradient is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.likelihoods import (
    ExpectedLikelihood,
    GaussianLikelihood,
    JointLikelihood,
    LearnedNoiseLikelihood,
    StandardisedLikelihood,
)
from envs.operators import LinearOperator

__all__ = ["information", "information_matrix"]


def information(likelihood: StandardisedLikelihood, value: Tensor, measurement: Tensor) -> Callable[[Tensor], Tensor]:
    """The product v [N, *D] -> H v at x = `value` [N, *D]; by autograd, but for Gaussian noise behind a linear A.

    `measurement` y [N, *Y] takes the place of E[y | x] where G does not depend on it: in noise that x has no part in.
    That of several instruments is the sum of theirs.
    """
    if isinstance(likelihood, JointLikelihood):
        products = []
        for part, own in zip(likelihood.parts, likelihood.split(measurement), strict=True):
            assert isinstance(part, StandardisedLikelihood)
            products.append(information(part, value, own))
        return lambda vector: torch.stack([product(vector) for product in products]).sum(0)
    if isinstance(likelihood, GaussianLikelihood) and isinstance(likelihood.operator, LinearOperator):
        operator, noise = likelihood.operator, likelihood.noise_std
        weight = noise.to(value) ** -2 if isinstance(noise, Tensor) else noise**-2
        return lambda vector: operator.adjoint(weight * operator(vector)).reshape(vector.shape)
    if isinstance(likelihood, LearnedNoiseLikelihood):
        forward, curvature = likelihood.operator, likelihood.curvature(value, measurement)
        if isinstance(forward, LinearOperator):
            return lambda vector: forward.adjoint(curvature(forward(vector))).reshape(vector.shape)
        push, pull = _linearised(forward, value)
        return lambda vector: pull(curvature(push(vector)))
    push, pull = _linearised(_residuals(likelihood, value, measurement), value)
    return lambda vector: pull(push(vector))


def information_matrix(
    likelihood: StandardisedLikelihood, value: Tensor, measurement: Tensor, rows: int = 128
) -> Tensor:
    """[D, D] H at x = `value` [*D], y = `measurement` [*Y]; `rows` of it at a time.

    A product with H costs one with G and one with G^T, so while y has at most twice as many elements as x it is made of
    the rows of G, and else of products with the axes of x, as it is where H has another form.
    """
    linear = isinstance(likelihood, GaussianLikelihood) and isinstance(likelihood.operator, LinearOperator)
    own = linear or isinstance(likelihood, JointLikelihood | LearnedNoiseLikelihood)
    parts = []
    if own or measurement.numel() > 2 * value.numel():
        for axes in torch.eye(value.numel()).to(value).split(rows):
            at, seen = value.expand(len(axes), *value.shape), measurement.expand(len(axes), *measurement.shape)
            parts.append(information(likelihood, at, seen)(axes.reshape(at.shape)).flatten(1))
        return torch.cat(parts)
    for axes in torch.eye(measurement.numel()).to(value).split(rows):
        at, seen = value.expand(len(axes), *value.shape), measurement.expand(len(axes), *measurement.shape)
        function = _residuals(likelihood, at, seen)
        with torch.enable_grad():
            leaf = at.detach().requires_grad_(True)
            (pulled,) = torch.autograd.grad(function(leaf), leaf, axes.reshape(seen.shape))
        parts.append(pulled.flatten(1))
    slopes = torch.cat(parts)
    return slopes.T @ slopes


def _residuals(likelihood: StandardisedLikelihood, value: Tensor, measurement: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of x: z, with y and noise as they are at x = `value`."""
    with torch.no_grad():
        seen = likelihood.expected(value) if isinstance(likelihood, ExpectedLikelihood) else measurement
    return lambda x: likelihood.standardised(x, seen)


def _linearised(
    function: Callable[[Tensor], Tensor], value: Tensor
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(v -> G v, w -> G^T w) for the slopes G of `function` at x = `value`, by autograd."""
    with torch.enable_grad():
        leaf = value.detach().requires_grad_(True)
        image = function(leaf)
        weights = torch.zeros_like(image, requires_grad=True)
        (pulled,) = torch.autograd.grad(image, leaf, weights, create_graph=True)  # G^T w, of slope G in w

    def push(vector: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, weights, vector.to(pulled), retain_graph=True)
        return pushed

    def pull(vector: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(image, leaf, vector, retain_graph=True)
        return back

    return push, pull
