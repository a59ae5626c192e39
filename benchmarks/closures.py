r"""`radio-closure` without diffusion: the posterior and the evidence, one component of the prior's mixture at a time.

The prior is sum_i w_i N(m_i, C), so p(y) = sum_i w_i Z_i, Z_i being the integral of N(x; m_i, C) p(y | x). With
x = m_i + L z, L L^T = C and whitened residuals r, J = dr / dz, Gauss-Newton steps

    z <- z - H^-1 (z + beta J^T r),    H = I + beta J^T J,

find the mode of each while beta rises from nearly zero, where closures hardly turn the phases, to one. What Laplace's
approximation says to be negligible is left out on the way. In u with z = mode + H^-1/2 u a component that matters is
nearly N(0, I), and a population drawn from that is tempered to what it is by Hamiltonian Monte Carlo, which gives Z_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.hmc import tempered_log_evidence
from diffusion.denoiser import MixtureDenoiser
from envs import InverseProblem
from envs.likelihoods import ClosureLikelihood

__all__ = ["ClosurePosterior", "Components", "closure_reference"]

BETAS = (*(10.0 ** (power / 3) for power in range(-12, 0)), *(1.0,) * 20)
KEPT = {1e-1: 300, 1.0: 100}
"""How many components are left from that beta on, the likeliest by Laplace's approximation."""
NEGLIGIBLE = 25.0  # nats below the likeliest component at the end, by Laplace's approximation, which may be off by ten
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # of a step: the best is taken, or none
ROWS = 50  # components at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClosurePosterior:
    """Draws of the posterior under the mixture itself, not under its chain."""

    log_partition: float
    """log p(y), nats."""
    draws: Tensor
    """[S, *D] float64, as many of each component as it has weight."""
    components: dict[int, float]
    """log w_i Z_i of the components that matter, nats."""


class Components:
    """The residuals of all components in their own coordinates z."""

    def __init__(self, prior: MixtureDenoiser, likelihood: ClosureLikelihood, measurement: Tensor) -> None:
        assert prior.eigenvectors is not None
        self.likelihood, self.measurement = likelihood, measurement.double()
        self.means = prior.means.double()
        self.root = prior.eigenvectors.double() * prior.eigenvalues.double().sqrt()  # L
        closures = likelihood.operator
        matrix = closures.visibilities.as_matrix().double() @ self.root
        self.real, self.imaginary = matrix[0::2], matrix[1::2]  # [K, D] dV / dz
        angles = closures.num_phases
        self.of_phase = -likelihood.whitening[:, :angles] @ closures.phases
        self.of_amplitude = -likelihood.whitening[:, angles:] @ closures.amplitudes

    def images(self, row: Tensor, z: Tensor) -> Tensor:
        """[N, H W] x."""
        return self.means[row] + z @ self.root.T

    def residuals(self, row: Tensor, z: Tensor) -> Tensor:
        """[N, M] whitened."""
        shape = self.likelihood.operator.visibilities.event_shape
        seen = self.measurement.expand(len(z), *self.measurement.shape[1:])
        return self.likelihood.standardised(self.images(row, z).reshape(len(z), *shape), seen)

    def slopes(self, row: Tensor, z: Tensor) -> Tensor:
        """[N, M, D] J."""
        shape = self.likelihood.operator.visibilities.event_shape
        seen = self.likelihood.operator.visibilities(self.images(row, z).reshape(len(z), *shape))
        real, imaginary = seen.unbind(-1)
        power = real.square() + imaginary.square()
        turn, grow = real / power, imaginary / power
        phase = turn[..., None] * self.imaginary - grow[..., None] * self.real
        amplitude = turn[..., None] * self.real + grow[..., None] * self.imaginary
        return self.of_phase @ phase + self.of_amplitude @ amplitude

    def misfit(self, row: Tensor, z: Tensor, beta: float) -> Tensor:
        """[N] |z|^2 / 2 + beta |r|^2 / 2."""
        return 0.5 * z.square().sum(1) + 0.5 * beta * self.residuals(row, z).square().sum(1)

    def step(self, row: Tensor, z: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """The best Gauss-Newton step from z [N, D], and log det H [N] before it."""
        slope = math.sqrt(beta) * self.slopes(row, z)
        gradient = z + math.sqrt(beta) * torch.einsum("nmd,nm->nd", slope, self.residuals(row, z))
        # H^-1 = I - J^T (I + J J^T)^-1 J: of the number of closures, which is the smaller one.
        factor = torch.linalg.cholesky(torch.eye(slope.shape[1], dtype=z.dtype) + slope @ slope.mT)
        through = torch.cholesky_solve((slope @ gradient[..., None]), factor)
        direction = -gradient + (slope.mT @ through)[..., 0]
        best, least = z, self.misfit(row, z, beta)
        for length in LENGTHS:
            tried = z + length * direction
            misfit = self.misfit(row, tried, beta)
            better = misfit < least
            best, least = torch.where(better[:, None], tried, best), torch.where(better, misfit, least)
        return best, 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


@torch.no_grad()
def closure_reference(problem: InverseProblem, population: int = 256, seed: int = 0) -> ClosurePosterior:
    """The posterior of the first measurement of `radio-closure`, from `population` paths of each component."""
    prior, likelihood = problem.prior.denoiser, problem.likelihood
    if not isinstance(prior, MixtureDenoiser) or not isinstance(likelihood, ClosureLikelihood):
        raise TypeError("the problem must be radio-closure")
    if not bool(prior.means.any(1).all()):
        raise ValueError(
            "modes are looked for from the components' means, and one of these is dark: it has no closures"
        )
    parts = Components(prior, likelihood, problem.measurements[:1])
    log_weights = prior.log_weights.double()
    row, z = _modes(parts, log_weights)
    generator = torch.Generator().manual_seed(seed)
    evidence: dict[int, float] = {}
    draws: dict[int, Tensor] = {}
    for index, mode in zip(row.tolist(), z, strict=True):
        slope = parts.slopes(torch.tensor([index]), mode[None])[0]
        values, vectors = torch.linalg.eigh(torch.eye(len(mode), dtype=mode.dtype) + slope.T @ slope)
        narrow = (vectors / values.sqrt()) @ vectors.T  # H^-1/2

        def excess(u: Tensor, index: int = index, mode: Tensor = mode, narrow: Tensor = narrow) -> Tensor:
            """Log density of the component's posterior at u [N, D], less that of N(0, I)."""
            at, rows = mode + u @ narrow, torch.full((len(u),), index)
            shape = problem.event_shape
            seen = parts.measurement.expand(len(u), *parts.measurement.shape[1:])
            log_likelihood = likelihood.log_prob(parts.images(rows, at).reshape(len(u), *shape), seen)
            return log_likelihood - 0.5 * at.square().sum(1) + 0.5 * u.square().sum(1)

        start = torch.randn(population, len(mode), generator=generator, dtype=mode.dtype)
        found, end = tempered_log_evidence(excess, start, generator=generator)
        evidence[index] = found - 0.5 * float(values.log().sum()) + float(log_weights[index])
        draws[index] = parts.images(torch.full((population,), index), mode + end @ narrow)
    total = torch.tensor(list(evidence.values()), dtype=torch.float64)
    share = (total - total.logsumexp(0)).exp()
    count = (share * population).round().long().tolist()
    return ClosurePosterior(
        log_partition=float(total.logsumexp(0)),
        draws=torch.cat([part[:n] for part, n in zip(draws.values(), count, strict=True)]).reshape(
            -1, *problem.event_shape
        ),
        components=evidence,
    )


def _modes(parts: Components, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Components that matter [C] and the modes of their posteriors [C, D]."""
    row = torch.arange(len(parts.means))
    z = torch.zeros_like(parts.means)
    for index, beta in enumerate(BETAS):
        stepped = [parts.step(row[part], z[part], beta) for part in torch.arange(len(row)).split(ROWS)]
        z, log_determinant = (torch.cat(values) for values in zip(*stepped, strict=True))
        last = index + 1 == len(BETAS) or BETAS[index + 1] != beta
        if last:
            laplace = log_weights[row] - parts.misfit(row, z, beta) - 0.5 * log_determinant
            most = min((count for limit, count in KEPT.items() if beta > 0.99 * limit), default=len(row))
            order = laplace.argsort(descending=True)[:most]
            if beta == 1:
                order = order[laplace[order] > laplace.max() - NEGLIGIBLE]
            row, z = row[order], z[order]
    return row, z
