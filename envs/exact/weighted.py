r"""The posterior by importance sampling, where the prior has a density and draws in closed form, and x few dimensions.

Population Monte Carlo (Cappe et al. 2004, J. Comput. Graph. Stat. 13, 907) with tempering. Draws x_i ~ q, first q = p,
have weights for the posterior and for its tempered form,

    w_i = p(x_i) p(y | x_i) / q(x_i),    w_i(b) = p(x_i) p(y | x_i)^b / q(x_i),

b being the largest power, up to one, that leaves an effective number of `CENTRES` draws. Those, resampled, are the
centres of the next q, a kernel density, a tenth of which stays p, so that no weight exceeds ten times the likelihood.
Its kernel is round or of the draws' covariance, and of the width under which other draws are likeliest; one Gaussian
for all of them, or under a mixture its components with other weights, may be likelier still. The mean of the w_i of the
last q is an unbiased estimate of the evidence. Nothing here knows of a chain.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from diffusion.denoiser import DataSampler, Density, MixtureDenoiser
from diffusion.prior import Prior
from envs.likelihoods import Likelihood

__all__ = ["ENOUGH", "KnownPrior", "WeightedPosterior", "reference", "weighted_posterior"]

DRAWS = 20_000
CENTRES = 1_000
ENOUGH = 2_000.0
"""Effective number of draws, of which log Z has a standard error of about 0.02 nats."""
ROUNDS = 8
DEFENSIVE = 0.1  # of q that stays p
WIDTHS = tuple(2.0**-power for power in range(8))  # of a kernel, in standard deviations of the draws
WIDER = 1.2  # variance of a Gaussian over that of the draws, so that its weights are bounded where they are Gaussian
FEW = 8  # elements of x that this is for
ROWS = 1_000  # of draws at a time: the distances to all centres are many numbers
POWER_BITS = 40

_log = logging.getLogger(__name__)


class KnownPrior(Protocol):
    """A denoiser whose data distribution is known: see `diffusion.denoiser`."""

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log p(x), nats."""
        ...

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] exact draws of x, float64."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class WeightedPosterior:
    """Weighted draws that stand for the posterior."""

    draws: Tensor
    """[N, *D] float64."""
    log_weights: Tensor
    """[N] float64, normalised."""
    log_partition: float
    """log p(y), nats, but for `log_partition_error`."""

    @property
    def effective_number(self) -> float:
        """How many independent draws these are worth."""
        return float((-(2 * self.log_weights).logsumexp(0)).exp())

    @property
    def log_partition_error(self) -> float:
        """Standard error of `log_partition`, nats, by the delta method."""
        return math.sqrt(max(1 / self.effective_number - 1 / len(self.draws), 0.0))

    @property
    def mean(self) -> Tensor:
        """[*D] posterior mean."""
        return torch.tensordot(self.log_weights.exp(), self.draws, 1)

    @property
    def variance(self) -> Tensor:
        """[*D] posterior variance of every element of x."""
        return torch.tensordot(self.log_weights.exp(), (self.draws - self.mean).square(), 1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] some of the draws by their weights, float64; more than the effective number repeat themselves."""
        rows = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        return self.draws[rows]


def reference(
    prior: Prior, likelihood: Likelihood, classify: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], tuple[WeightedPosterior, Tensor | None]] | None:
    """`InverseProblem.solve` by importance sampling; None where p(x) is not known or x has more than eight elements.

    `classify` maps x [N, *D] to the probability of each class [N, classes].
    """
    denoiser = prior.denoiser
    known = isinstance(denoiser, Density) and isinstance(denoiser, DataSampler)
    if not known or torch.Size(prior.event_shape).numel() > FEW:
        return None
    density = cast(KnownPrior, denoiser)

    def solve(measurement: Tensor) -> tuple[WeightedPosterior, Tensor | None]:
        def log_likelihood(value: Tensor) -> Tensor:
            parts = value.float().split(ROWS)
            return torch.cat([likelihood.log_prob(x, measurement.expand(len(x), *measurement.shape)) for x in parts])

        found = weighted_posterior(density, log_likelihood)
        return found, None if classify is None else found.log_weights.exp() @ classify(found.draws).double()

    return solve


@torch.no_grad()
def weighted_posterior(
    prior: KnownPrior, log_likelihood: Callable[[Tensor], Tensor], *, draws: int = DRAWS, seed: int = 0
) -> WeightedPosterior:
    """The posterior of `log_likelihood` (x [N, *D] float64 to log p(y | x) [N]) under `prior`, from `draws` a round.

    A NaN of the likelihood counts as an x that is impossible. If 8 rounds do not give 2,000 effective draws a warning
    says how many there are.

    Raises:
        ValueError: the likelihood of all draws is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    value = prior.sample(draws, generator)
    shape = tuple(value.shape[1:])
    log_ratio = torch.zeros(draws, dtype=torch.float64)  # log p / q
    for _ in range(ROUNDS):
        likelihood = log_likelihood(value).double().nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        log_weight = log_ratio + likelihood
        total = log_weight.logsumexp(0)
        if not bool(torch.isfinite(total)):
            raise ValueError(f"none of {draws} draws has a likelihood above zero, so there is nothing to go on from")
        found = WeightedPosterior(value, log_weight - total, float(total) - math.log(draws))
        if found.effective_number >= ENOUGH:
            break
        power = _power(log_ratio, likelihood)
        proposal = _proposal(prior, value.flatten(1), (log_ratio + power * likelihood).softmax(0), generator)
        kept = round(DEFENSIVE * draws)
        value = torch.cat([prior.sample(kept, generator), proposal.sample(draws - kept, generator).reshape(-1, *shape)])
        log_prior = _log_prob(prior, value)
        log_kernels = _log_prob(proposal, value.flatten(1))
        log_proposal = torch.logaddexp(log_prior + math.log(kept / draws), log_kernels + math.log(1 - kept / draws))
        log_ratio = log_prior - log_proposal
    if found.effective_number < ENOUGH:
        _log.warning("a reference posterior is of %.0f effective draws, %g wanted", found.effective_number, ENOUGH)
    return found


def _power(log_ratio: Tensor, likelihood: Tensor) -> float:
    """The largest power of the likelihood, up to one, that leaves `CENTRES` effective draws, by bisection."""

    def effective(power: float) -> float:
        log_weight = (log_ratio + power * likelihood).log_softmax(0)
        return float((-(2 * log_weight).logsumexp(0)).exp())

    low, high = 0.0, 1.0
    if effective(high) >= CENTRES:
        return high
    for _ in range(POWER_BITS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= CENTRES else (low, middle)
    return low


def _log_prob(density: KnownPrior, value: Tensor) -> Tensor:
    return torch.cat([density.log_prob(part).double() for part in value.split(ROWS)])


def _proposal(prior: KnownPrior, flat: Tensor, weights: Tensor, generator: torch.Generator) -> MixtureDenoiser:
    """A kernel density of the draws `flat` [N, D] with `weights` [N], or the prior with other weights of its parts."""
    centred = flat - weights @ flat
    covariance = (weights[:, None] * centred).T @ centred
    unit = covariance.diagonal().mean() * torch.eye(flat.shape[1], dtype=flat.dtype)
    rows = torch.multinomial(weights, 2 * CENTRES, replacement=True, generator=generator).unique()
    rows = rows[torch.randperm(len(rows), generator=generator)]  # no draw is a centre and tells of the width too
    centres, others = flat[rows[::2]], flat[rows[1::2]]
    shapes = (covariance + 1e-9 * unit, unit)
    kernels = [MixtureDenoiser(centres, width**2 * shape) for shape in shapes for width in WIDTHS]
    kernels.append(MixtureDenoiser((weights @ flat)[None], WIDER * shapes[0]))  # kernels cost draws in many dimensions
    if isinstance(prior, MixtureDenoiser):  # then a kernel need not be found, but only which components matter
        shares = prior.classify(centres.reshape(-1, *prior.event_shape)).double().mean(0)
        log_shares = (0.99 * shares + 0.01 * prior.log_weights.exp()).log()
        kernels.append(MixtureDenoiser(prior.means, prior.covariance, log_shares))
    return max(kernels, key=lambda kernel: float(kernel.log_prob(others).mean()))
