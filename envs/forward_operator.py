"""Forward operators: from x to the noiseless measurement."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["ForwardOperator", "LinearOperator", "Pixels"]


class ForwardOperator(Protocol):
    """A differentiable map from x [N, *D] to noiseless measurements [N, *Y]."""

    measurement_shape: tuple[int, ...]

    def __call__(self, value: Tensor) -> Tensor:
        """[N, *Y] noiseless measurements of `value` [N, *D]."""
        ...


class LinearOperator(nn.Module):
    """y = A x for a matrix A [Y, D] on x flattened to [D]."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        if matrix.ndim != 2:
            raise ValueError(f"the operator matrix must be [Y, D], got shape {tuple(matrix.shape)}")
        self.register_buffer("matrix", matrix.double())
        self.measurement_shape: tuple[int, ...] = (matrix.shape[0],)

    def forward(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`."""
        return value.flatten(1) @ self.matrix.to(value).T


class Pixels(LinearOperator):
    """Keeps the pixels where `mask` (bool, the shape of x) is true: inpainting."""

    def __init__(self, mask: Tensor) -> None:
        flat = mask.flatten().bool()
        if not bool(flat.any()):
            raise ValueError("the mask keeps no pixel; at least one must be measured")
        super().__init__(torch.eye(len(flat), dtype=torch.float64)[flat])
        self.mask = mask.bool()
        self.indices = flat.nonzero().squeeze(1)

    def forward(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`; a gather instead of a product."""
        return value.flatten(1)[:, self.indices]
