r"""Exact posterior of a Gaussian mixture under a linear measurement whose elements have noise of their own sizes.

With S = diag(sigma) and S^-1 A = Q R, Q of orthonormal columns (if y has more numbers, m, than x, d), the likelihood
depends on y by z = Q^T S^-1 y alone, as many numbers as x has:

    log N(y; A x, S^2) = log N(z; R x, I) - |S^-1 y - Q z|^2 / 2 - log det S - ((m - d) / 2) log(2 pi),

so tens of thousands of visibilities cost no more than the image has pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from envs.exact.mixture import MixturePosterior, condition_mixture

__all__ = ["condition_on_weighted"]


def condition_on_weighted(
    density: MixtureDenoiser, matrix: Tensor, noise_std: Tensor, measurement: Tensor
) -> MixturePosterior:
    """The posterior of `density` given y = `measurement` [m] of noise `noise_std` [m] behind A = `matrix` [m, d]."""
    white = matrix.double() / noise_std.double()[:, None]
    seen = measurement.double() / noise_std.double()
    rest = -float(noise_std.double().log().sum())
    if len(white) > white.shape[1]:
        orthonormal, triangular = torch.linalg.qr(white)
        inside = orthonormal.T @ seen
        lost = float(seen.square().sum() - inside.square().sum())
        rest -= 0.5 * lost + 0.5 * (len(white) - white.shape[1]) * math.log(2 * math.pi)
        white, seen = triangular, inside
    posterior = condition_mixture(
        density.means, density.covariance, density.log_weights, white, 1.0, seen, density.event_shape
    )
    return replace(posterior, log_partition=posterior.log_partition + rest)
