r"""Phase retrieval: magnitudes of a Fourier transform, whose phases are lost.

    oversampled   y = |F x|, x padded with zeros to `oversampling` times its size;
    coded         y_c = |F (m_c x)| for known masks m_c of signs.

x and -x, and for the oversampled one x rotated by 180 degrees, cannot be told apart (Fienup 1982, Appl. Opt. 21, 2758).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CodedMagnitudes", "FourierMagnitudes"]

LEAST_SQUARE = 1e-12  # below it the gradient of a magnitude is zero, not infinite


class FourierMagnitudes(nn.Module):
    """y = |F x| of images [C, H, W] padded to `oversampling` times their size, orthonormal F.

    Half of the plane of frequencies, [C, rows, columns // 2 + 1] flattened; the other half is its mirror image.
    """

    def __init__(self, event_shape: tuple[int, ...], oversampling: int = 2) -> None:
        super().__init__()
        if oversampling < 1:
            raise ValueError(f"oversampling must be at least 1, got {oversampling}")
        self.event_shape = tuple(event_shape)
        *channels, height, width = event_shape
        self.size = (oversampling * height, oversampling * width)
        planes = torch.Size(channels).numel()
        self.measurement_shape: tuple[int, ...] = (planes * self.size[0] * (self.size[1] // 2 + 1),)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return _magnitudes(torch.fft.rfft2(value, s=self.size, norm="ortho")).flatten(1)


class CodedMagnitudes(nn.Module):
    """y_c = |F (m_c x)| for `count` masks of random signs (Candes, Li and Soltanolkotabi 2015, arXiv 1310.3240)."""

    masks: Tensor

    def __init__(self, event_shape: tuple[int, ...], count: int = 4, seed: int = 0) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"there must be at least one mask, got {count}")
        if len(event_shape) != 3:
            raise ValueError(f"x must be an image [C, H, W], got shape {tuple(event_shape)}")
        self.event_shape = tuple(event_shape)
        *channels, height, width = event_shape
        drawn = torch.randint(2, (count, 1, height, width), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("masks", 2.0 * drawn.double() - 1.0)
        self.measurement_shape: tuple[int, ...] = (count, *channels, height, width // 2 + 1)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return _magnitudes(torch.fft.rfft2(value[:, None] * self.masks.to(value), norm="ortho"))


def _magnitudes(spectrum: Tensor) -> Tensor:
    square = spectrum.real.square() + spectrum.imag.square()
    return square.clamp_min(LEAST_SQUARE).sqrt()
