"""An event: y = 1 if x is in a set, else 0, without noise. Z = p(y = 1) is the probability of the event."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["EventLikelihood"]


class EventLikelihood:
    """p(y = 1 | x) is one where the margin is not negative, and zero elsewhere: a density without a gradient."""

    measurement_shape: tuple[int, ...] = (1,)

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        """`margin` maps x [N, *D] to [N], at least zero in the event; the further from it, the more negative."""
        self.margin = margin

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.Likelihood`; y is 0 or 1, anything else is impossible."""
        happened, said = self.margin(value) >= 0, measurement[:, 0].to(value)
        agrees = torch.where(happened, said == 1, said == 0)
        return torch.where(agrees, 0.0, -torch.inf).to(value)

    def violation(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.RelaxedLikelihood`: how much the margin lacks of agreeing with y, in its own units."""
        margin, said = self.margin(value), measurement[:, 0].to(value)
        return torch.where(said == 1, -margin, margin).clamp_min(0)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `envs.likelihoods.SimulableLikelihood`."""
        return (self.margin(value) >= 0).to(value)[:, None]
