r"""Counts on a source, and counts beside it: the background is measured too, and its uncertainty counts.

    y_i ~ Poisson(s_i + ratio_i b_i),    B_i ~ Poisson(b_i),    s = A(x),

where B are the counts of a background measurement and `ratio` the exposure and area of y over those of B. With
Jeffreys' prior b^(-1/2), b given B is Gamma(B + 1/2, 1), and b is integrated out: the counts n of background in y are
negative binomial, of mean ratio (B + 1/2), and

    p(y_i | x) = sum_{n = 0}^{y_i} Poisson(y_i - n; s_i) NegativeBinomial(n; B_i + 1/2, ratio_i / (1 + ratio_i)),

which is normalised in y. The sum ends where n has a probability of 1e-20 left, so p(y_i | x) is exact to that. (The W
statistic of X-ray astronomy puts the likeliest b in the place of the integral, and is no density of y.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from envs.likelihoods.base import AutogradLikelihood, noiseless
from envs.operators import ForwardOperator

__all__ = ["MeasuredBackgroundLikelihood"]

TAIL = 1e-20  # probability of more counts of background than the sum goes to
LEAST = 1e-20  # expected counts of a source that is not there, so that ratios to it are numbers
RESCALED = 8  # terms


class MeasuredBackgroundLikelihood(AutogradLikelihood):
    """Poisson counts over a background that was counted elsewhere."""

    background: Tensor
    log_background: Tensor

    def __init__(self, operator: ForwardOperator, background: Tensor, ratio: float) -> None:
        """`operator` gives the expected counts s; `background` B is of the shape of y, and `ratio` above 0."""
        super().__init__()
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)
        background = background.double()
        if tuple(background.shape) != self.measurement_shape:
            raise ValueError(
                f"background must be counts of the measurement's shape {self.measurement_shape}, got shape "
                f"{tuple(background.shape)}"
            )
        if not bool((torch.isfinite(background) & (background >= 0) & (background == background.round())).all()):
            raise ValueError("background must be whole numbers of 0 and more, and finite everywhere")
        if not (ratio > 0 and math.isfinite(ratio)):
            raise ValueError(f"ratio must be positive and finite, got {ratio}")
        self.ratio = float(ratio)
        self.register_buffer("background", background)
        self.register_buffer("log_background", log_negative_binomial(background, self.ratio))

    def expected(self, value: Tensor) -> Tensor:
        """See `ExpectedLikelihood`."""
        source = noiseless(self.operator, value)
        return source + self.ratio * (self.background + 0.5).to(value)

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`: with the mean and the variance over both, y and b."""
        extra = self.ratio * (self.background + 0.5).to(value)
        source = noiseless(self.operator, value)
        return (measurement.to(value) - source - extra) / (source + extra * (1 + self.ratio)).sqrt()

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`; -inf where a count is not one, or A(x) is not a number of 0 or more."""
        source, counts = noiseless(self.operator, value).double(), measurement.to(value).double()
        possible = (counts >= 0) & (counts == counts.round()) & torch.isfinite(source) & (source >= 0)
        source, counts = torch.where(possible, source, 1.0), torch.where(possible, counts, 0.0)
        log_prob: Tensor = _Mixed.apply(source.clamp_min(LEAST), counts, self.log_background)  # type: ignore[no-untyped-call]
        return torch.where(possible.flatten(1).all(1), log_prob.flatten(1).sum(1), -torch.inf).to(value)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        source = noiseless(self.operator, value)
        chances = self.log_background.exp().flatten(0, -2)
        drawn = torch.multinomial(chances, len(value), replacement=True, generator=generator).T
        return torch.poisson(source, generator=generator) + drawn.reshape(source.shape).to(source)


class _Mixed(torch.autograd.Function):
    """log sum_n Poisson(y - n; s) p(n) in y's elements, and its slope in s, by Horner's rule.

    With p(n) y! / (y - n)! = p(0) r_0 ... r_n-1 for r_n = (y - n) p(n + 1) / p(n), the sum is Poisson(y; s) p(0) Q_0,
    Q_n = 1 + r_n / s Q_n+1; and d log p / ds = (y - E n) / s - 1, where E n, the counts of background expected given y,
    is G_0 = w_0 (1 + G_1) and so on with w_n = 1 - 1 / Q_n. No array is larger than y.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, counts: Tensor, log_chances: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        """Of `source` s and `counts` y [N, *Y], and `log_chances` [*Y, K] of n = 0..K-1."""
        ratios = log_chances.diff(dim=-1).exp()
        one, total, expected = torch.ones_like(source), torch.ones_like(source), torch.zeros_like(source)
        log_scale = torch.zeros_like(source)
        inverse = 1 / source
        for number in reversed(range(ratios.shape[-1])):
            total = one + (counts - number).clamp_min(0) * ratios[..., number] * inverse * total
            expected = (1 - one / total) * (1 + expected)
            if number % RESCALED == 0:  # Q itself may be beyond any number
                log_scale = log_scale + total.log()
                one, total = one / total, torch.ones_like(total)
        ctx.save_for_backward((counts - expected) * inverse - 1)
        log_poisson = torch.xlogy(counts, source) - source - torch.lgamma(counts + 1)
        return log_poisson + log_chances[..., 0] + log_scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None


def log_negative_binomial(background: Tensor, ratio: float) -> Tensor:
    """[*Y, K] log probabilities of 0..K-1 counts of background given B = `background`, cut where TAIL is left."""
    shape = background[..., None] + 0.5
    mean = ratio * float(shape.max())
    # No tail falls off more slowly than by ratio / (1 + ratio) a count, beyond some standard deviations.
    fall = -math.log(TAIL) / math.log1p(1 / ratio)
    most = math.ceil(mean + 8 * math.sqrt(mean * (1 + ratio)) + fall) + 2
    number = torch.arange(most, dtype=torch.float64)
    constant = torch.lgamma(number + shape) - torch.lgamma(number + 1) - torch.lgamma(shape)
    log_chances = constant + number * math.log(ratio / (1 + ratio)) - shape * math.log1p(ratio)
    return log_chances - log_chances.logsumexp(-1, keepdim=True)
