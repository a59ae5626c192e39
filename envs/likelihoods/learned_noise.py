r"""Noise of which there is no formula, but images: its density is that of a diffusion model that was trained on them.

    y = A(x) + c n,    log p(y | x) = log p_n((y - A(x)) / c) - m log c,

for y of m numbers, p_n being the density of the noise by the probability flow of its denoiser, in nats and with its
constant (`diffusion.flow_density`, which states its cost and its errors: 1e-3 nats for 256 pixels of correlated
Gaussian noise, more where powers are far above the mean, and 2e-3 for mixtures). Score-based likelihood
characterisation (SLIC: Legin, Adam, Hezaveh and Perreault-Levasseur 2023, ApJL 949 L41, arXiv 2302.03046) takes from
that model the score alone; with the density evidences can be compared, and weights are exact.

The gradient is that score, by one call of the denoiser, pulled back through A:

    grad_x log p(y | x) = -(dA/dx)^T (n^ - n) / (c tau^2),    tau = `score_level` d,

n^ being the denoiser's estimate from n with noise of tau. It is the gradient for noise that has tau more of it: smaller
than that of `log_prob` where the noise has less power than tau^2, by a share tau^2 / (power + tau^2) if it is Gaussian.
A smaller tau amplifies the errors of a network. So it is a guide and a proposal; nothing that is exact may rest on it.
What a network says of residuals much larger than any of its noise is extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion.flow_density import FlowDensity
from envs.likelihoods.base import noiseless
from envs.operators import ForwardOperator, LinearOperator

__all__ = ["LearnedNoiseLikelihood"]

SCORE_LEVEL = 0.1


class LearnedNoiseLikelihood(nn.Module):
    """y = A(x) + c n, n of a learned density."""

    def __init__(
        self, operator: ForwardOperator, noise: FlowDensity, scale: float = 1.0, score_level: float = SCORE_LEVEL
    ) -> None:
        """`noise` is the density of n, of the measurement's shape, and `scale` the c of y in its units.

        `score_level` is the noise, in standard deviations of n, that the gradient allows for.

        Raises:
            ValueError: noise of another shape, or a number that is not positive.
        """
        super().__init__()
        self.operator, self.noise = operator, noise
        self.measurement_shape = tuple(operator.measurement_shape)
        if noise.event_shape != self.measurement_shape:
            raise ValueError(
                f"the noise must be of the measurement's shape {list(self.measurement_shape)}, its prior is over "
                f"{list(noise.event_shape)}"
            )
        for name, given in (("scale", scale), ("score_level", score_level)):
            if not (given > 0 and math.isfinite(given)):
                raise ValueError(f"{name} must be positive and finite, got {given}")
        self.scale, self.score_level = float(scale), float(score_level)

    def _residual(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, *Y] n = (y - A(x)) / c."""
        return (measurement.to(value) - noiseless(self.operator, value)) / self.scale

    @torch.no_grad()
    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`; -inf where A(x) is not finite. Autograd does not go through it: see `gradient`."""
        residual = self._residual(value, measurement)
        finite = torch.isfinite(residual.flatten(1)).all(1)
        log_prob = residual.new_full((len(residual),), -torch.inf)
        log_prob[finite] = self.noise.log_prob(residual[finite]).to(log_prob)
        return log_prob - math.prod(self.measurement_shape) * math.log(self.scale)

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`, and the module for what it is the gradient of."""
        with torch.no_grad():
            score, _ = self.noise.score(self._residual(value, measurement), self.score_level)
        cotangent = -score.to(value) / self.scale
        if isinstance(self.operator, LinearOperator):
            return self.operator.adjoint(cotangent).reshape(value.shape)
        with torch.enable_grad():
            leaf = value.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(noiseless(self.operator, leaf), leaf, cotangent)
        return gradient

    def curvature(self, value: Tensor, measurement: Tensor) -> Callable[[Tensor], Tensor]:
        """[N, *Y] -> [N, *Y] products with minus the Hessian of log p(y | x) in A(x): of the density of `gradient`."""
        with torch.no_grad():
            _, product = self.noise.score(self._residual(value, measurement), self.score_level)
        return lambda vector: product(vector).to(value) / self.scale**2

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`: where the flow carries n, which is N(0, I) for noise of this density."""
        return self.noise.latent(self._residual(value, measurement)).to(value)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`: with noise of the density that `log_prob` is."""
        clean = noiseless(self.operator, value)
        return clean + self.scale * self.noise.sample(len(value), generator).to(clean)
