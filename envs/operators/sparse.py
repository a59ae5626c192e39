"""Sparse matrices: physics that spreads every element of x over a few of y. Among them, tomography."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from envs.operators.base import LinearOperator

__all__ = ["SparseMatrix", "radon"]

# A dense product of a matrix that is as full as this takes half the time of a sparse one, or less, and little memory.
FULL_SHARE, FULL_SIZE = 0.2, 2**22


class SparseMatrix(LinearOperator):
    """y = A x for a sparse matrix A on x flattened."""

    indices: Tensor
    values: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        measurement_shape: tuple[int, ...],
        rows: Tensor,
        columns: Tensor,
        values: Tensor,
    ) -> None:
        """A has the sum of those `values` [K] at (`rows`, `columns`) [K], and zeros elsewhere."""
        super().__init__(event_shape, measurement_shape)
        size = (torch.Size(measurement_shape).numel(), torch.Size(event_shape).numel())
        if not rows.shape == columns.shape == values.shape or rows.ndim != 1:
            shapes = [tuple(value.shape) for value in (rows, columns, values)]
            raise ValueError(f"rows, columns and values must be vectors of one length, got shapes {shapes}")
        for name, index, limit in (("rows", rows, size[0]), ("columns", columns, size[1])):
            if len(index) and not (int(index.min()) >= 0 and int(index.max()) < limit):
                raise ValueError(f"{name} must be within 0..{limit - 1}, got {int(index.min())}..{int(index.max())}")
        indices = torch.stack([rows, columns]).long()
        joined = torch.sparse_coo_tensor(indices, values.double(), size, check_invariants=False).coalesce()
        self.register_buffer("indices", joined.indices())
        self.register_buffer("values", joined.values())
        self._size = size
        self._made: dict[tuple[torch.dtype, torch.device, bool], Tensor] = {}

    def _matrix(self, like: Tensor, transposed: bool) -> Tensor:
        """A or A^T, in rows of compressed storage but where it is nearly full; made once."""
        key = (like.dtype, like.device, transposed)
        if key not in self._made:
            indices = (self.indices.flip(0) if transposed else self.indices).to(like.device)
            size = self._size[::-1] if transposed else self._size
            made = torch.sparse_coo_tensor(indices, self.values.to(like), size, check_invariants=False).coalesce()
            if size[0] * size[1] <= min(FULL_SIZE, len(self.values) / FULL_SHARE):
                self._made[key] = made.to_dense()
                return self._made[key]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
                self._made[key] = made.to_sparse_csr()
        return self._made[key]

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        flat = value.flatten(1).T
        return (self._matrix(value, False) @ flat).T.reshape(len(value), *self.measurement_shape)

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        flat = measurement.flatten(1).T
        return (self._matrix(measurement, True) @ flat).T.reshape(len(measurement), *self.event_shape)

    def as_matrix(self) -> Tensor:
        """See `LinearOperator`."""
        dense = torch.zeros(self._size, dtype=torch.float64, device=self.values.device)
        dense[self.indices[0], self.indices[1]] = self.values
        return dense


def radon(event_shape: tuple[int, ...], angles: int, pixel_size: float = 1.0) -> SparseMatrix:
    """Line integrals of an image [1, N, N] along parallel rays: y [angles, N], angles k pi / `angles`.

    Detector element j of angle phi sees the ray of points  t (-sin phi, cos phi) + r_j (cos phi, sin phi)  in (x, y)
    from the image's centre, x to the right and y down, r_j = (j - (N - 1) / 2) pixels; x between pixels is bilinear and
    zero outside. Units: those of x times those of `pixel_size` (Radon 1917; Kak and Slaney 1988, Principles of
    Computerized Tomographic Imaging, chapter 3).
    """
    channels, height, width = event_shape if len(event_shape) == 3 else (0, 0, 1)
    if channels != 1 or height != width:
        raise ValueError(f"tomography is of images [1, N, N], got {event_shape}")
    if angles < 1:
        raise ValueError(f"angles must be at least 1, got {angles}")
    centre = (width - 1) / 2
    offset = torch.arange(width, dtype=torch.float64) - centre
    along = torch.arange(-math.ceil(1.5 * width / 2), math.ceil(1.5 * width / 2) + 1, dtype=torch.float64)
    angle = torch.arange(angles, dtype=torch.float64) * (math.pi / angles)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    right = offset[:, None] * cos - along * sin + centre  # [angles, rays, points]
    down = offset[:, None] * sin + along * cos + centre
    ray = torch.arange(angles * width).reshape(angles, width, 1).expand_as(right)
    rows, columns, values = [], [], []
    for step_down in (0, 1):
        for step_right in (0, 1):
            row, column = down.floor() + step_down, right.floor() + step_right
            weight = (1 - (down - row).abs()) * (1 - (right - column).abs()) * pixel_size
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (weight > 0)
            rows.append(ray[inside])
            columns.append((row * width + column)[inside].long())
            values.append(weight[inside])
    return SparseMatrix(event_shape, (angles, width), torch.cat(rows), torch.cat(columns), torch.cat(values))
