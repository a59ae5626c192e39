r"""Counts: photons, photons that a camera reads with noise, and events that happen or do not.

    Poisson            y ~ Poisson(lambda),   lambda = exposure A(x) + background,
    Poisson-Gaussian   y = gain n + read_std noise,   n ~ Poisson(lambda),
    Bernoulli          y is 1 with probability 1 / (1 + exp(-A(x))), else 0,

the second being summed over n: log p(y | x) = log sum_n Poisson(n; lambda) N(y; gain n, read_std^2). In both A(x) is an
intensity; a lambda below zero has no density, so A has to keep it from that (an exponential, a square).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.likelihoods.base import AutogradLikelihood, noiseless
from envs.operators import ForwardOperator

__all__ = ["BernoulliLikelihood", "PoissonGaussianLikelihood", "PoissonLikelihood"]

WIDTH = 8.0  # standard deviations of n given y that the sum reaches to each side
NEWTON_STEPS = 8
LOG_TWO_PI = math.log(2 * math.pi)
LEAST = 1e-30  # expected counts where there are none, so that logarithms and ratios are numbers


class PoissonLikelihood(AutogradLikelihood):
    """Counts of mean lambda = exposure A(x) + background."""

    exposure: Tensor
    background: Tensor

    def __init__(
        self, operator: ForwardOperator, exposure: float | Tensor = 1.0, background: float | Tensor = 0.0
    ) -> None:
        """`exposure` (counts per unit of A) and `background` (counts) are numbers, or of the shape of y."""
        super().__init__()
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)
        for name, given, least in (("exposure", exposure, "positive"), ("background", background, "not negative")):
            field = torch.as_tensor(given, dtype=torch.float64)
            if field.ndim and tuple(field.shape) != self.measurement_shape:
                raise ValueError(
                    f"{name} must be a number or of the measurement's shape {self.measurement_shape}, got shape "
                    f"{tuple(field.shape)}"
                )
            sound = torch.isfinite(field) & ((field > 0) if least == "positive" else (field >= 0))
            if not bool(sound.all()):
                span = f"{float(field.min())} to {float(field.max())}"
                raise ValueError(f"{name} must be {least} and finite everywhere, got {span}")
            self.register_buffer(name, field)

    def mean(self, value: Tensor) -> Tensor:
        """[N, *Y] lambda."""
        return noiseless(self.operator, value) * self.exposure.to(value) + self.background.to(value)

    def expected(self, value: Tensor) -> Tensor:
        """See `ExpectedLikelihood`."""
        return self.mean(value)

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`: Pearson's residuals."""
        mean = self.mean(value)
        return (measurement.to(value) - mean) / mean.clamp_min(LEAST).sqrt()

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`; -inf where a count is not one, or lambda is negative, or zero for counts above zero."""
        mean, counts = self.mean(value).double(), measurement.to(value).double()  # large numbers, small differences
        whole = (counts >= 0) & (counts == counts.round())
        possible = whole & torch.isfinite(mean) & ((mean > 0) | ((mean == 0) & (counts == 0)))
        mean = torch.where(possible, mean, 0.0)  # what is impossible has no gradient, not one of NaN
        log_prob = torch.xlogy(counts, mean.clamp_min(LEAST)) - mean - torch.lgamma(counts + 1)
        return torch.where(possible.flatten(1).all(1), log_prob.flatten(1).sum(1), -torch.inf).to(value)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        return torch.poisson(self.mean(value).clamp_min(0), generator=generator)


class PoissonGaussianLikelihood(PoissonLikelihood):
    """What a camera reads: `gain` units per count, and noise of standard deviation `read_std` units."""

    def __init__(
        self,
        operator: ForwardOperator,
        read_std: float,
        gain: float = 1.0,
        exposure: float | Tensor = 1.0,
        background: float | Tensor = 0.0,
    ) -> None:
        super().__init__(operator, exposure, background)
        for name, given in (("read_std", read_std), ("gain", gain)):
            if not (given > 0 and math.isfinite(given)):
                raise ValueError(f"{name} must be positive and finite, got {given}")
        self.read_std, self.gain = float(read_std), float(gain)

    def expected(self, value: Tensor) -> Tensor:
        """See `ExpectedLikelihood`."""
        return self.gain * self.mean(value).clamp_min(0)

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`."""
        mean = self.mean(value).clamp_min(0)
        variance = self.gain**2 * mean + self.read_std**2
        return (measurement.to(value) - self.gain * mean) / variance.sqrt()

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`; the sum is over those n that have a part in it, so its cost is about read_std / gain."""
        mean = self.mean(value).double()
        unsound = (mean < 0) | ~torch.isfinite(mean)
        wrong = unsound.flatten(1).any(1)
        mean = torch.where(unsound, 1.0, mean.clamp_min(LEAST))
        each, _ = self._terms(mean, measurement.to(value).double() / self.gain)
        log_prob = each.logsumexp(-1) - math.log(self.read_std) - 0.5 * LOG_TWO_PI
        return torch.where(wrong, -torch.inf, log_prob.flatten(1).sum(1)).to(value)

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`: d log p / d lambda = E[n | y] / lambda - 1, and the rest by autograd."""
        seen = measurement.to(value).double() / self.gain
        with torch.enable_grad():
            leaf = value.detach().requires_grad_(True)
            mean = self.mean(leaf)
            with torch.no_grad():
                sound = (mean >= 0) & torch.isfinite(mean)
                known = torch.where(sound, mean, 1.0).double().clamp_min(LEAST)
                each, number = self._terms(known, seen)
                slope = (each.softmax(-1) * number).sum(-1) / known - 1
                slope = torch.where(sound.flatten(1).all(1)[(...,) + (None,) * (mean.ndim - 1)], slope, 0.0)
            (gradient,) = torch.autograd.grad(mean, leaf, slope.to(mean))
        return gradient

    def _terms(self, mean: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(log Poisson(n; `mean`) N(`seen`; n, spread^2) without its constant, n), both [*, terms]; in counts."""
        spread = self.read_std / self.gain
        half = math.ceil(WIDTH * spread) + 8
        offset = torch.arange(-half, half + 1, device=mean.device, dtype=torch.float64)
        number = _likeliest(seen, mean.detach(), spread**2)[..., None] + offset
        here = number >= 0
        number = number.clamp_min(0)
        each = torch.xlogy(number, mean[..., None]) - mean[..., None] - torch.lgamma(number + 1)
        each = each - 0.5 * ((seen[..., None] - number) / spread).square()
        return torch.where(here, each, -torch.inf), number

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        counts = super().sample(value, generator)
        noise = torch.randn(counts.shape, generator=generator, dtype=counts.dtype, device=counts.device)
        return self.gain * counts + self.read_std * noise


class BernoulliLikelihood(AutogradLikelihood):
    """Each element of y is 1 or 0, A(x) being the logarithm of its odds (logistic regression)."""

    def __init__(self, operator: ForwardOperator) -> None:
        super().__init__()
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`; -inf where an element is neither 0 nor 1."""
        seen, log_odds = measurement.to(value), noiseless(self.operator, value)
        possible = ((seen == 0) | (seen == 1)).flatten(1).all(1)
        log_prob = torch.nn.functional.logsigmoid((2 * seen - 1) * log_odds).flatten(1).sum(1)
        return torch.where(possible, log_prob, -torch.inf)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        return torch.bernoulli(noiseless(self.operator, value).sigmoid(), generator=generator)


def _likeliest(seen: Tensor, mean: Tensor, variance: float) -> Tensor:
    """The whole number next to the n of largest Poisson(n; mean) N(seen; n, variance).

    Its logarithm u solves  exp(u) + variance u = seen + variance log(mean),  which is convex: Newton's steps from the
    right come down to it.
    """
    target = seen + variance * mean.log()
    log_number = torch.where(target >= 1, target.clamp_min(1).log(), (target / variance).clamp_max(0))
    for _ in range(NEWTON_STEPS):
        number = log_number.exp()
        log_number = log_number - (number + variance * log_number - target) / (number + variance)
    return log_number.exp().round()
