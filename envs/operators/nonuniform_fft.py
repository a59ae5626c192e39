r"""Visibilities by a non-uniform fast Fourier transform: for large images, a fast stand-in of the direct sum.

With G >= 2 H rows, b = 2 p v G, and a kernel phi that is zero beyond w / 2 (in one dimension; rows and columns apart),

    V(v) ~ sum_g phi(p v G - g) F_g,    F = FFT_G of (I_i / c_i padded with zeros),    c_i = Phi(i / G),

Phi the Fourier transform of phi (Fessler and Sutton 2003, IEEE TSP 51, 560). phi is the Kaiser-Bessel window

    phi(t) = I_0(beta sqrt(1 - (2 t / w)^2)),    Phi(f) = w sinh(s) / s,  s = sqrt(beta^2 - (pi w f)^2),

of width w = 7 on a grid twice as fine, beta = 2.30 w: errors of about 1e-6 of the visibilities' norm (Barnett,
Magland and af Klinteberg 2019, SIAM J. Sci. Comput. 41, C479, for kernels of this kind). Conventions: `visibilities`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.operators.base import MAX_DENSE, LinearOperator
from envs.operators.sparse import SparseMatrix
from envs.operators.visibilities import Visibilities, checked_frequencies

__all__ = ["FastVisibilities", "visibility_operator"]

WIDTH, OVERSAMPLING = 7, 2
BETA = 2.30 * WIDTH
FAST_VISIBILITIES, FAST_PIXELS = 2_000, 1_024  # from both on it is faster than the matrix: benchmarks/nufft.py


class FastVisibilities(LinearOperator):
    """`Visibilities` by gridding and a fast Fourier transform, of cost K w^2 + 4 H W log(4 H W)."""

    correction: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], u: Tensor, v: Tensor, pixel_size: float, brightness: float = 1.0
    ) -> None:
        """As `Visibilities`."""
        u, v = checked_frequencies(event_shape, u, v, pixel_size, brightness)
        super().__init__(event_shape, (len(u), 2))
        height, width = event_shape[1:]
        self._grid = (_length(height), _length(width))
        # I_ij sits at m_i = (H // 2 - i) p: with the frequency -v in place of v the offset i - H // 2 counts upwards.
        row, row_weight = _taps(-v * pixel_size, self._grid[0])
        column, column_weight = _taps(-u * pixel_size, self._grid[1])
        node = row[:, :, None] * self._grid[1] + column[:, None]  # [K, w, w]
        weight = row_weight[:, :, None] * column_weight[:, None]
        seen = torch.arange(len(u))[:, None, None].expand_as(node)
        cells = self._grid[0] * self._grid[1]
        self.interpolation = SparseMatrix((cells,), (len(u),), seen.flatten(), node.flatten(), weight.flatten())
        correction = brightness / (_transform(height, self._grid[0])[:, None] * _transform(width, self._grid[1]))
        self.register_buffer("correction", correction)

    def _padded(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the padded grid where the image lies, the phase centre being at [0, 0]."""
        device = self.correction.device
        down, right = (
            (torch.arange(size, device=device) - size // 2) % grid
            for size, grid in zip(self.event_shape[1:], self._grid, strict=True)
        )
        return down[:, None], right

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        down, right = self._padded()
        grid = value.new_zeros(len(value), *self._grid)
        grid[:, down, right] = value[:, 0] * self.correction.to(value)
        spectrum = torch.view_as_real(torch.fft.fft2(grid)).movedim(-1, 0)  # [2, N, G, G]
        seen = self.interpolation(spectrum.reshape(2 * len(value), -1))
        return seen.reshape(2, len(value), -1).movedim(0, -1)

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        count = len(measurement)
        parts = self.interpolation.adjoint(measurement.movedim(-1, 0).reshape(2 * count, -1))
        real, imaginary = parts.reshape(2, count, *self._grid)
        # sum over g of exp(+2 pi i ...): the inverse transform without its factor 1 / G^2; the image is its real part
        image = torch.fft.ifft2(torch.complex(real, imaginary), norm="forward").real
        down, right = self._padded()
        return (image[:, down, right] * self.correction.to(measurement))[:, None]


def visibility_operator(
    event_shape: tuple[int, ...], u: Tensor, v: Tensor, pixel_size: float, brightness: float = 1.0
) -> Visibilities | FastVisibilities:
    """The fast transform for 2,000 visibilities or more of 1,024 pixels or more, or of a matrix above 2^26 numbers.

    Else the direct sum.
    """
    count, pixels = len(u), event_shape[-1] * event_shape[-2]
    fast = (count >= FAST_VISIBILITIES and pixels >= FAST_PIXELS) or 2 * count * pixels > MAX_DENSE
    kind = FastVisibilities if fast else Visibilities
    return kind(event_shape, u, v, pixel_size, brightness)


def _length(size: int) -> int:
    """An even length of at least twice `size`, and more than the kernel is wide, of small prime factors."""
    length = max(OVERSAMPLING * size, 2 * WIDTH)
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def _taps(frequency: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Nodes [K, w] of the `grid` near each `frequency` [K], in cycles per pixel, and the kernel's weights there."""
    place = frequency * grid
    first = torch.ceil(place - WIDTH / 2)
    node = first[:, None] + torch.arange(WIDTH, dtype=torch.float64)
    apart = (2 * (place[:, None] - node) / WIDTH).clamp(-1, 1)
    return node.long() % grid, torch.special.i0(BETA * (1 - apart.square()).sqrt())


def _transform(size: int, grid: int) -> Tensor:
    """[size] Phi at the offsets of the pixels from the phase centre, over the length of the grid."""
    offset = (torch.arange(size, dtype=torch.float64) - size // 2) / grid
    root = (BETA**2 - (math.pi * WIDTH * offset).square()).sqrt()
    return WIDTH * torch.sinh(root) / root
