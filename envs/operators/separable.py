"""Maps that act on rows and columns apart, y = R x C^T for every channel: among them, lower resolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from envs.operators.base import LinearOperator, Spectrum

__all__ = ["Separable", "lower_resolution"]


class Separable(LinearOperator):
    """Images [C, H, W] -> [C, h, w] by matrices R [h, H] and C [w, W]."""

    rows: Tensor
    columns: Tensor

    def __init__(self, event_shape: tuple[int, ...], rows: Tensor, columns: Tensor) -> None:
        *channels, height, width = event_shape
        if rows.shape[1] != height or columns.shape[1] != width:
            raise ValueError(
                f"matrices for rows and columns must be [h, {height}] and [w, {width}] for x of shape {event_shape}, "
                f"got {tuple(rows.shape)} and {tuple(columns.shape)}"
            )
        super().__init__(event_shape, (*channels, len(rows), len(columns)))
        self.register_buffer("rows", rows.double())
        self.register_buffer("columns", columns.double())

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return self.rows.to(value) @ value @ self.columns.to(value).T

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return self.rows.to(measurement).T @ measurement @ self.columns.to(measurement)

    def spectrum(self) -> Spectrum:
        """See `LinearOperator`: products of the eigenvalues and eigenvectors of R R^T and C C^T."""
        shape = self.measurement_shape
        (high, left), (wide, right) = (torch.linalg.eigh(part @ part.T) for part in (self.rows, self.columns))
        values = (high.clamp_min(0)[:, None] * wide.clamp_min(0)).expand(shape).flatten()

        def analyse(value: Tensor) -> Tensor:
            return (left.to(value).T @ value @ right.to(value)).flatten(1)

        def synthesise(value: Tensor) -> Tensor:
            return left.to(value) @ value.reshape(len(value), *shape) @ right.to(value).T

        return Spectrum(values, analyse, synthesise)


def lower_resolution(
    event_shape: tuple[int, ...], factor: int, method: Literal["mean", "bicubic"] = "mean"
) -> Separable:
    """Images with 1 / `factor` as many rows and columns.

    mean: of every block of `factor` x `factor` pixels, as a coarser detector sees it; bicubic: with antialiasing, as
    the benchmarks of vision have it (Keys 1981, IEEE Trans. ASSP 29, 1153).
    """
    *_, height, width = event_shape
    if factor < 2 or height % factor or width % factor:
        raise ValueError(f"factor must be at least 2 and divide the {height} x {width} pixels, got {factor}")
    if method not in ("mean", "bicubic"):
        raise ValueError(f"method must be mean or bicubic, got {method!r}")

    def resizing(size: int) -> Tensor:
        unit = torch.eye(size, dtype=torch.float64)[:, None, None]  # [size, 1, 1, size]
        if method == "mean":
            return torch.nn.functional.avg_pool2d(unit, (1, factor))[:, 0, 0].T
        resized = torch.nn.functional.interpolate(unit, (1, size // factor), mode="bicubic", antialias=True)
        return resized[:, 0, 0].T

    return Separable(event_shape, resizing(height), resizing(width))
