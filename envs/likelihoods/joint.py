"""Several instruments that look at the same x: log p(y_1, y_2, ... | x) = sum of log p(y_i | x)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from envs.likelihoods.base import (
    DifferentiableLikelihood,
    Likelihood,
    SimulableLikelihood,
    StandardisedLikelihood,
)

__all__ = ["DifferentiableJointLikelihood", "JointLikelihood", "SimulableJointLikelihood", "joint"]


class JointLikelihood(nn.Module):
    """Independent measurements of one x, flattened and put behind one another in y."""

    def __init__(self, parts: Sequence[Likelihood]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a joint likelihood needs at least one part, got none")
        self.parts = tuple(parts)
        self._modules_of_parts = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
        self._sizes = [torch.Size(part.measurement_shape).numel() for part in parts]
        self.measurement_shape: tuple[int, ...] = (sum(self._sizes),)

    def split(self, measurement: Tensor) -> list[Tensor]:
        """Y [N, Y] as the measurements [N, *Y_i] of the parts."""
        pieces = measurement.split(self._sizes, dim=1)
        return [
            piece.reshape(len(measurement), *part.measurement_shape)
            for piece, part in zip(pieces, self.parts, strict=True)
        ]

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        pairs = zip(self.parts, self.split(measurement), strict=True)
        return torch.stack([part.log_prob(value, own) for part, own in pairs]).sum(0)


class SimulableJointLikelihood(JointLikelihood):
    """One whose parts can all be simulated."""

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        drawn = []
        for part in self.parts:
            assert isinstance(part, SimulableLikelihood)
            drawn.append(part.sample(value, generator).flatten(1))
        return torch.cat(drawn, 1)


class DifferentiableJointLikelihood(JointLikelihood):
    """One whose parts all have a gradient."""

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`."""
        total = torch.zeros_like(value)
        for part, own in zip(self.parts, self.split(measurement), strict=True):
            assert isinstance(part, DifferentiableLikelihood)
            total = total + part.gradient(value, own)
        return total


class _SimulableDifferentiableJointLikelihood(SimulableJointLikelihood, DifferentiableJointLikelihood):
    """Both."""


class _StandardisedJointLikelihood(_SimulableDifferentiableJointLikelihood):
    """Both, and residuals."""

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`."""
        residuals = []
        for part, own in zip(self.parts, self.split(measurement), strict=True):
            assert isinstance(part, StandardisedLikelihood)
            residuals.append(part.standardised(value, own).flatten(1))
        return torch.cat(residuals, 1)


def joint(parts: Sequence[Likelihood]) -> JointLikelihood:
    """The likelihood of all `parts` together, with a gradient where all have one, simulated where all can be.

    It has residuals where all have a gradient, can be simulated, and have residuals.
    """
    differentiable = all(isinstance(part, DifferentiableLikelihood) for part in parts)
    standardised = all(isinstance(part, StandardisedLikelihood) for part in parts)
    if all(isinstance(part, SimulableLikelihood) for part in parts):
        if differentiable and standardised:
            return _StandardisedJointLikelihood(parts)
        return (_SimulableDifferentiableJointLikelihood if differentiable else SimulableJointLikelihood)(parts)
    return (DifferentiableJointLikelihood if differentiable else JointLikelihood)(parts)
