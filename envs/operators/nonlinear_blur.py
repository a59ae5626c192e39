r"""A blur that is not a convolution: a surrogate, without weights, for the networks that benchmarks take.

    y = tanh(gain (K x + w (N x)^2)),

K a Gaussian blur, N a second, oriented one, of random direction: bright structure spreads more than faint one, and the
camera's response saturates. It is NOT the network of Tran et al. 2021 (arXiv 2104.00317) that is trained on the GoPro
data, and numbers made with one cannot be compared with numbers made with the other; with its weights there is
`EncodedBlur`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from envs.operators.convolution import Convolution, gaussian_kernel

__all__ = ["NonlinearBlurSurrogate"]


class NonlinearBlurSurrogate(nn.Module):
    """Images [C, H, W] -> [C, H, W] in (-1, 1)."""

    def __init__(
        self, event_shape: tuple[int, ...], std: float = 1.0, gain: float = 1.0, weight: float = 0.3, seed: int = 0
    ) -> None:
        """`std` of the blur in pixels; `gain` of the response; `weight` w; the direction is drawn with `seed`."""
        super().__init__()
        if not gain > 0:
            raise ValueError(f"gain must be positive, got {gain}")
        size = min(len(gaussian_kernel(std)), *(extent - 1 + extent % 2 for extent in event_shape[-2:]))
        self.blur = Convolution(event_shape, gaussian_kernel(std, size))
        angle = float(torch.rand((), generator=torch.Generator().manual_seed(seed))) * math.pi
        self.streak = Convolution(event_shape, _oriented(angle, 2 * std, 0.5 * std, size))
        self.gain, self.weight = gain, weight
        self.measurement_shape = tuple(event_shape)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return (self.gain * (self.blur(value) + self.weight * self.streak(value).square())).tanh()


def _oriented(angle: float, long: float, short: float, size: int) -> Tensor:
    """[size, size] a Gaussian of standard deviations `long` and `short`, its long axis at `angle`; sum one."""
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    along, across = right * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - right * math.sin(angle)
    kernel = (-0.5 * ((along / long).square() + (across / short).square())).exp()
    return kernel / kernel.sum()
