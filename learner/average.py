"""Exponential moving average of parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The averaged weights of a module as one flat vector.

    Early on the decay is (1 + n) / (10 + n) if that is smaller, so that the first updates do not weigh for ever.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.vector: Tensor = nn.utils.parameters_to_vector(module.parameters()).detach().clone()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the current parameters of `module`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.vector.lerp_(nn.utils.parameters_to_vector(module.parameters()), 1 - decay)
