"""Exponential moving average of parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.ranks import held

__all__ = ["WeightAverage", "flat_weights"]


def flat_weights(module: nn.Module) -> Tensor:
    """The parameters of a module, or what this rank holds of them, as one vector; without graph."""
    return torch.cat([held(value.detach()).flatten() for value in module.parameters()])


class WeightAverage:
    """The averaged weights of a module as one flat vector: of those that this rank holds.

    Early on the decay is (1 + n) / (10 + n) if that is smaller, so that the first updates do not weigh for ever.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.vector: Tensor = flat_weights(module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the current parameters of `module`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.vector.lerp_(flat_weights(module), 1 - decay)
