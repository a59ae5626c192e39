r"""A density that cannot be negative, of a Gaussian field: lognormal (Coles and Jones 1991, MNRAS 248, 1).

1 + delta = exp(g - s^2 / 2)    for g of mean zero and variance s^2,  so that E delta = 0.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ["Lognormal"]


class Lognormal(nn.Module):
    """(1 + delta)^bias of the field x = g, element by element; in units of the mean density where `bias` is 1."""

    def __init__(self, event_shape: tuple[int, ...], std: float, bias: float = 1.0) -> None:
        """`std` is s, that of an element of x."""
        super().__init__()
        if not (std > 0 and math.isfinite(std)) or not math.isfinite(bias):
            raise ValueError(f"std must be positive and finite and bias finite, got {std} and {bias}")
        self.std, self.bias = float(std), float(bias)
        self.measurement_shape = tuple(event_shape)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return (self.bias * (value - self.std**2 / 2)).exp()
