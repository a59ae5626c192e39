"""A reference value of log p(y) for the log-Gaussian Cox process, by a tempered population without diffusion."""

from __future__ import annotations

import math

import torch

from diffusion.denoiser import GaussianDenoiser
from envs import InverseProblem
from envs.problems.lgcp import CoxLikelihood

__all__ = ["cox_log_evidence"]

NEWTON_STEPS = 30


def cox_log_evidence(
    problem: InverseProblem, population: int = 256, levels: int = 50, moves: int = 5, seed: int = 0
) -> float:
    """Estimate of log p(y) for the first measurement of `lgcp`, in nats.

    The variational Gaussian q of the log intensity (mean m, covariance S, found by Newton's method on

        y - a exp(m + diag(S) / 2) = K^-1 (m - mu),    S^-1 = K^-1 + diag(a exp(m + diag(S) / 2)),

    Opper and Archambeau 2009) is tempered to the posterior: sequential Monte Carlo over q (p(x, y) / q)^beta (Del Moral
    et al. 2006), beta = k / levels, with systematic resampling, and at each level `moves` of preconditioned
    Crank-Nicolson about q (Cotter et al. 2013), in float64.
    """
    prior, likelihood = problem.prior.denoiser, problem.likelihood
    if not (isinstance(prior, GaussianDenoiser) and prior.eigenvectors is not None):
        raise TypeError("the problem must be lgcp, got one without a correlated Gaussian prior")
    assert isinstance(likelihood, CoxLikelihood)
    generator, area = torch.Generator().manual_seed(seed), likelihood.area
    counts, mu = problem.measurements[0].double(), prior.mean
    covariance = (prior.eigenvectors * prior.eigenvalues) @ prior.eigenvectors.T
    mean, variance = mu.clone(), torch.zeros_like(mu)
    for _ in range(NEWTON_STEPS):
        intensity = area * (mean + variance / 2).exp()
        # S = (K^-1 + D)^-1 = K - K D^1/2 (I + D^1/2 K D^1/2)^-1 D^1/2 K, which never inverts K.
        root = intensity.sqrt()
        inner = torch.linalg.cholesky(torch.eye(len(mu)).double() + root[:, None] * covariance * root)
        half = torch.linalg.solve_triangular(inner, root[:, None] * covariance, upper=False)
        spread = covariance - half.T @ half
        variance = spread.diagonal()
        mean = mu + spread @ (counts - intensity + intensity * (mean - mu))
    factor = torch.linalg.cholesky(spread)

    def log_ratio(noise: torch.Tensor) -> torch.Tensor:
        """[N] log p(x, y) - log q(x) at x = m + factor noise."""
        value = mean + noise @ factor.T
        whitened = (value - mu) @ prior.eigenvectors / prior.eigenvalues.sqrt()
        log_prior = -(whitened.square().sum(1) + prior.eigenvalues.log().sum()) / 2
        log_q = -noise.square().sum(1) / 2 - factor.diagonal().log().sum()
        terms = counts * (value + math.log(area)) - area * value.exp() - torch.lgamma(counts + 1)
        return log_prior + terms.sum(1) - log_q

    def normal() -> torch.Tensor:
        return torch.randn(population, len(mu), generator=generator, dtype=torch.float64)

    noise = normal()
    current, evidence, size = log_ratio(noise), 0.0, 0.5
    for level in range(1, levels + 1):
        weight = current / levels
        evidence += float(weight.logsumexp(0)) - math.log(population)
        edges = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(population)) / population
        rows = torch.searchsorted(weight.softmax(0).cumsum(0), edges).clamp_max(population - 1)
        noise, current, rate = noise[rows], current[rows], 0.0
        for _ in range(moves):
            proposal = math.sqrt(1 - size**2) * noise + size * normal()
            proposed = log_ratio(proposal)
            uniform = torch.rand(population, generator=generator, dtype=torch.float64)
            accepted = uniform.log() < level / levels * (proposed - current)
            noise = torch.where(accepted[:, None], proposal, noise)
            current = torch.where(accepted, proposed, current)
            rate += float(accepted.double().mean()) / moves
        size = min(size * math.exp(rate - 1 / 3), 0.99)
    return evidence
