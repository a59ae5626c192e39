r"""Shapes of the loss on a residual r: the square, or Huber's function, which bounds what one trajectory can do.

    square: r^2 / 2,        huber: r^2 / 2 for |r| <= c, else c (|r| - c / 2).

Huber leaves the fixed point (r = 0 everywhere) where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["residual_loss"]


def residual_loss(residual: Tensor, huber: float | None) -> Tensor:
    """[B] loss of each `residual` [B]; `huber` is c, or None for the square."""
    if huber is None:
        return 0.5 * residual.square()
    return torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=huber, reduction="none")
