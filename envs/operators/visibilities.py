r"""Visibilities of an image: its Fourier transform at frequencies that lie on no grid, as an interferometer sees it.

    V(u, v) = sum_ij I_ij exp(-2 pi i (u l_j + v m_i)),    l_j = (W // 2 - j) p,    m_i = (H // 2 - i) p

(Thompson, Moran and Swenson, Interferometry and Synthesis in Radio Astronomy, eq. 3.7, small fields). l points east and
m north, in radians; u and v are in wavelengths along the same axes, and p is the width of a pixel in radians. So row 0
of the image is its north and column 0 its east, as on the sky, and the phase centre is pixel (H // 2, W // 2). The
brightness is I = `brightness` * x in Jy/pixel, all of it at the pixel's centre; V is in Jy. A real image has
V(-u, -v) = V(u, v)*, so real and imaginary parts are measured, y [K, 2].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.operators.base import MAX_DENSE, LinearOperator

__all__ = ["ARCSECOND", "Visibilities", "checked_frequencies", "offsets"]

ARCSECOND = math.pi / 180 / 3600
"""One second of arc in radians."""


class Visibilities(LinearOperator):
    """The direct sum as a matrix [2 K, H W]: exact, and fastest where that is small."""

    matrix: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], u: Tensor, v: Tensor, pixel_size: float, brightness: float = 1.0
    ) -> None:
        """`event_shape` [1, H, W]; `u`, `v` [K] in wavelengths, `pixel_size` p in radians, `brightness` in Jy/pixel.

        Raises:
            ValueError: shapes that do not fit, numbers that are not finite, frequencies that the pixels alias, or a
                matrix of more than 2^26 numbers.
        """
        u, v = checked_frequencies(event_shape, u, v, pixel_size, brightness)
        super().__init__(event_shape, (len(u), 2))
        height, width = event_shape[1:]
        if 2 * len(u) * height * width > MAX_DENSE:
            raise ValueError(
                f"{len(u)} visibilities of {height} x {width} pixels are a matrix of more than {MAX_DENSE} numbers; "
                "use FastVisibilities, or average the visibilities"
            )
        east, north = offsets(event_shape, pixel_size)
        angle = 2 * math.pi * (v[:, None, None] * north[:, None] + u[:, None, None] * east)  # [K, H, W]
        self.register_buffer("matrix", brightness * torch.stack([angle.cos(), -angle.sin()], 1).reshape(2 * len(u), -1))
        self._converted: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def _matrix(self, like: Tensor) -> Tensor:
        """The matrix as `like` is; converted once."""
        key = (like.dtype, like.device)
        if key not in self._converted:
            self._converted[key] = self.matrix.to(like)
        return self._converted[key]

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return (value.flatten(1) @ self._matrix(value).T).reshape(len(value), -1, 2)

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`; of visibilities that are weighted alike the dirty image, times K."""
        return (measurement.flatten(1) @ self._matrix(measurement)).reshape(-1, *self.event_shape)

    def as_matrix(self) -> Tensor:
        """See `LinearOperator`."""
        return self.matrix


def offsets(event_shape: tuple[int, ...], pixel_size: float) -> tuple[Tensor, Tensor]:
    """East [W] of the columns, l, and north [H] of the rows, m, in the unit of `pixel_size`, float64."""
    height, width = event_shape[1:]
    east = (width // 2 - torch.arange(width, dtype=torch.float64)) * pixel_size
    north = (height // 2 - torch.arange(height, dtype=torch.float64)) * pixel_size
    return east, north


def checked_frequencies(
    event_shape: tuple[int, ...], u: Tensor, v: Tensor, pixel_size: float, brightness: float
) -> tuple[Tensor, Tensor]:
    """`u` and `v` as float64 [K], once they and the grid fit each other."""
    if len(event_shape) != 3 or event_shape[0] != 1:
        raise ValueError(f"visibilities are of a real image [1, H, W], got x of shape {tuple(event_shape)}")
    if u.shape != v.shape or u.ndim != 1 or not len(u):
        raise ValueError(f"u and v must be vectors of one length, got shapes {tuple(u.shape)} and {tuple(v.shape)}")
    for name, number in (("pixel_size", pixel_size), ("brightness", brightness)):
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be positive and finite, got {number}")
    u, v = u.double(), v.double()
    if not bool((torch.isfinite(u) & torch.isfinite(v)).all()):
        raise ValueError("u and v must be finite numbers of wavelengths")
    largest = float(torch.maximum(u.abs(), v.abs()).max())
    if largest * pixel_size > 0.5 + 1e-9:
        raise ValueError(
            f"pixels of {pixel_size / ARCSECOND:.4g} arcsec alias u and v beyond {0.5 / pixel_size:.4g} wavelengths, "
            f"got {largest:.4g}; take pixels of at most {0.5 / largest / ARCSECOND:.4g} arcsec"
        )
    return u, v
