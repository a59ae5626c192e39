r"""From residuals r to losses. All have their minimum, and nothing else stationary, where the residual is zero
(clipped: within c of it), so they differ in what one trajectory can do, not in the fixed point.

    square         r^2 / 2
    huber          r^2 / 2 for |r| <= c, else c (|r| - c / 2)       a runaway path pulls no more than one c off
    clipped        max(r^2 - c^2, 0) / 2                            a residual floor is left alone (an imperfect prior)
    shifted-cosh   c^2 (cosh(r / c) - 1)                            large residuals first: modes that were missed

with c = `scale` in nats; near zero all but clipped are r^2 / 2. Clipped is the published code's (arXiv 2405.20971, with
c^2 = 0.1); shifted cosh: Hu et al. 2024 (arXiv 2410.02596).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Loss", "LossShape"]

LossShape = Literal["square", "huber", "clipped", "shifted-cosh"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Shape and scale of the loss."""

    shape: LossShape = "huber"
    scale: float = 30.0

    def __call__(self, residual: Tensor) -> Tensor:
        """The loss of each element of `residual`, of any shape, in nats squared."""
        if self.shape == "square":
            return 0.5 * residual.square()
        if self.shape == "huber":
            return torch.nn.functional.huber_loss(
                residual, torch.zeros_like(residual), delta=self.scale, reduction="none"
            )
        if self.shape == "clipped":
            return 0.5 * (residual.square() - self.scale**2).clamp_min(0.0)
        return self.scale**2 * ((residual / self.scale).cosh() - 1)
