r"""Blur that differs from place to place: the point spread of a camera changes over its field.

    y = sum_k K_k (w_k x),    w_k >= 0,  sum_k w_k = 1,

K_k the convolution with kernel k, and w_k how much of each pixel of x it blurs (Nagy and O'Leary 1998, SIAM J. Sci.
Comput. 19, 1063).
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.operators.base import LinearOperator
from envs.operators.convolution import Convolution

__all__ = ["SpaceVariantBlur", "corner_weights"]


class SpaceVariantBlur(LinearOperator):
    """Images [C, H, W] blurred by several kernels, zero beyond their edges; the measurement is of the same shape."""

    weights: Tensor

    def __init__(self, event_shape: tuple[int, ...], kernels: Tensor, weights: Tensor) -> None:
        """`kernels` [K, h, w] of odd sizes, as for `Convolution`; `weights` [K, H, W], whose sum over K is one."""
        super().__init__(event_shape, event_shape)
        expected = (len(kernels), *event_shape[-2:])
        if tuple(weights.shape) != expected:
            raise ValueError(f"weights must be {list(expected)}, one a kernel and pixel, got {list(weights.shape)}")
        weights = weights.double()
        if not (bool((weights >= 0).all()) and torch.allclose(weights.sum(0), torch.ones((), dtype=torch.float64))):
            raise ValueError("the weights of each pixel must not be negative and have the sum one")
        self.blurs = torch.nn.ModuleList([Convolution(event_shape, kernel, "zero") for kernel in kernels])
        self.register_buffer("weights", weights)

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        pairs = zip(self.blurs, self.weights.to(value), strict=True)
        return torch.stack([blur(weight * value) for blur, weight in pairs]).sum(0)

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        total = torch.zeros_like(measurement)
        for blur, weight in zip(self.blurs, self.weights.to(measurement), strict=True):
            assert isinstance(blur, Convolution)
            total = total + weight * blur.adjoint(measurement)
        return total


def corner_weights(height: int, width: int) -> Tensor:
    """[4, height, width] bilinear weights of kernels at the corners: bottom left and right, top left and right."""
    up, right = (torch.linspace(0, 1, size, dtype=torch.float64) for size in (height, width))
    rows, columns = torch.stack([1 - up, up]), torch.stack([1 - right, right])
    return (rows[:, None, :, None] * columns[None, :, None, :]).reshape(4, height, width)
