r"""`xray-spectrum` without diffusion: importance sampling over the components of the prior's mixture.

The prior is sum_i w_i N(m_i, h^2 I), so p(y) = sum_i w_i Z_i with Z_i the integral of N(x; m_i, h^2 I) p(y | x). The
integrand of a component has one narrow peak, which Fisher's scoring finds,

    x <- x + H^-1 (grad log p(y | x) - (x - m_i) / h^2),    H = I / h^2 + J^T diag(1 / E y) J,   J = dA / dx,

and a Gaussian about it, somewhat wider than H^-1, is the proposal of as many draws for every component that matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from envs import InverseProblem
from envs.problems.xray_spectrum import Folded

__all__ = ["Reference", "mixture_reference"]

SCORING_STEPS = 25
WIDER = 1.2  # of the proposal's variance
NEGLIGIBLE = 12.0  # nats below the likeliest component, by Laplace's approximation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The posterior under the mixture itself, not under its chain."""

    log_partition: float
    """log p(y), nats."""
    standard_error: float
    """Of `log_partition`, nats."""
    samples: Tensor
    """[S, D] float64 draws of the proposals."""
    weights: Tensor
    """[S] float64 their weights, of sum one."""
    components: int
    """How many components had a part in it."""


def mixture_reference(problem: InverseProblem, draws: int = 400, seed: int = 0) -> Reference:
    """The posterior of the first measurement of `xray-spectrum`, `draws` of each component that matters."""
    prior, likelihood = problem.prior.denoiser, problem.likelihood
    operator = getattr(likelihood, "operator", None)
    if not isinstance(prior, MixtureDenoiser) or prior.eigenvectors is not None or not isinstance(operator, Folded):
        raise TypeError("the problem must be xray-spectrum with a prior of simulated spectra")
    precision, matrix = float(1 / prior.eigenvalues[0]), operator.matrix
    measurement, means = problem.measurements[:1].double(), prior.means.double()

    def log_joint(value: Tensor, centre: Tensor) -> Tensor:
        distance = (value - centre).square().sum(1)
        log_prior = -0.5 * precision * distance + 0.5 * value.shape[1] * math.log(precision / (2 * math.pi))
        return log_prior + likelihood.log_prob(value, measurement.expand(len(value), -1))

    def scoring(value: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """The step of Fisher's scoring [N, D] and the Cholesky factor of H [N, D, D]."""
        slope = matrix * value.exp()[:, None, :]
        background = getattr(likelihood, "background", torch.zeros(())) * getattr(likelihood, "ratio", 1.0)
        expected = slope.sum(2) + background
        hessian = torch.einsum("ngd,nge->nde", slope / expected.clamp_min(1e-9)[..., None], slope)
        factor = torch.linalg.cholesky(hessian + precision * torch.eye(value.shape[1], dtype=torch.float64))
        gradient = likelihood.gradient(value, measurement.expand(len(value), -1)) - precision * (value - centre)
        return torch.cholesky_solve(gradient[..., None], factor)[..., 0], factor

    value, log_weights = means.clone(), prior.log_weights
    for _ in range(SCORING_STEPS):
        step, factor = scoring(value, means)
        value = value + step * (1.0 / step.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    _, factor = scoring(value, means)
    log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    dim = means.shape[1]
    laplace = log_weights + log_joint(value, means) + 0.5 * dim * math.log(2 * math.pi) - 0.5 * log_determinant
    kept = (laplace > laplace.max() - NEGLIGIBLE).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(kept), draws, dim, generator=generator, dtype=torch.float64)
    # H = L L^T, so L^-T noise has the covariance H^-1.
    spread = torch.linalg.solve_triangular(factor[kept].mT, noise.mT, upper=True).mT * math.sqrt(WIDER)
    sample = (value[kept, None] + spread).reshape(-1, dim)
    log_proposal = (
        -0.5 * noise.square().sum(2) + 0.5 * log_determinant[kept, None] - 0.5 * dim * math.log(2 * math.pi * WIDER)
    )
    log_weight = log_joint(sample, means[kept].repeat_interleave(draws, 0)).reshape(len(kept), draws) - log_proposal
    log_weight = (log_weight + log_weights[kept, None] - math.log(draws)).flatten()
    log_partition = float(log_weight.logsumexp(0))
    weights = (log_weight - log_partition).exp().reshape(len(kept), draws)
    # Components are strata: the variance is the sum of that within each.
    error = float((weights.var(1) * draws).sum().sqrt())
    return Reference(
        log_partition=log_partition,
        standard_error=error,
        samples=sample,
        weights=weights.flatten(),
        components=len(kept),
    )
