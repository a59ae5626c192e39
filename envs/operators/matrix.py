"""A dense matrix: any linear map of few numbers, and compressed sensing by random projections."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.operators.base import LinearOperator

__all__ = ["Matrix", "random_projections"]


class Matrix(LinearOperator):
    """y = A x for a matrix A [Y, D] on x flattened to [D]."""

    matrix: Tensor
    """[Y, D] float64."""

    def __init__(self, matrix: Tensor, event_shape: tuple[int, ...] | None = None) -> None:
        """`event_shape` is that of x, [D] if None."""
        if matrix.ndim != 2:
            raise ValueError(f"the operator matrix must be [Y, D], got shape {tuple(matrix.shape)}")
        shape = (matrix.shape[1],) if event_shape is None else event_shape
        if torch.Size(shape).numel() != matrix.shape[1]:
            raise ValueError(f"a matrix of {matrix.shape[1]} columns does not act on x of shape {tuple(shape)}")
        super().__init__(shape, (matrix.shape[0],))
        self.register_buffer("matrix", matrix.double())
        self._converted: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def _as(self, like: Tensor) -> Tensor:
        """A in the dtype and on the device of `like`; converted once, as that takes as long as the product."""
        key = (like.dtype, like.device)
        if key not in self._converted:
            self._converted[key] = self.matrix.to(like)
        return self._converted[key]

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return value.flatten(1) @ self._as(value).T

    def as_matrix(self) -> Tensor:
        """See `LinearOperator`."""
        return self.matrix

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return (measurement @ self._as(measurement)).reshape(len(measurement), *self.event_shape)


def random_projections(event_shape: tuple[int, ...], count: int, seed: int = 0) -> Matrix:
    """`count` inner products with Gaussian vectors of expected squared norm D / `count` (compressed sensing).

    Elements are N(0, 1 / count), so that |A x|^2 is |x|^2 on average (Candes and Tao 2006, arXiv math/0410542).
    """
    dim = torch.Size(event_shape).numel()
    if not 1 <= count <= dim:
        raise ValueError(f"the number of projections must be within 1..{dim}, the size of x, got {count}")
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Matrix(drawn / count**0.5, event_shape)
