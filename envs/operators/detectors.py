"""What a detector does to a signal beyond adding noise: saturation, and numbers of few digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Clipped", "Quantised"]


class Clipped(nn.Module):
    """y = clip(gain x, -1, 1): a range too wide for the detector (HDR), with no gradient where it saturates.

    The task of Mardani et al. 2023 (arXiv 2305.04391), whose gain is 2.
    """

    def __init__(self, event_shape: tuple[int, ...], gain: float = 2.0) -> None:
        super().__init__()
        if not gain > 0:
            raise ValueError(f"gain must be positive, got {gain}")
        self.gain = gain
        self.measurement_shape = tuple(event_shape)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return (self.gain * value).clamp(-1, 1)


class Quantised(nn.Module):
    """x on [-1, 1] in `levels` equal steps: a staircase, of which a gradient says nothing.

    Its likelihood should have none (`envs.likelihoods.WithoutGradient`), or autograd's zeros would be taken for one.
    """

    def __init__(self, event_shape: tuple[int, ...], levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"there must be at least two levels, got {levels}")
        self.step = 2 / (levels - 1)
        self.measurement_shape = tuple(event_shape)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        with torch.no_grad():
            return ((value.clamp(-1, 1) + 1) / self.step).round() * self.step - 1
