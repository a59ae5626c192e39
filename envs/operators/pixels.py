"""Some elements of x are seen and the others are not: inpainting; all of them: denoising.

Boxes and random pixels are the tasks of Chung et al. 2023 (DPS, arXiv 2209.14687).
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.operators.base import LinearOperator, Spectrum

__all__ = ["Pixels", "box_mask", "random_mask"]


class Pixels(LinearOperator):
    """Keeps the elements of x where `mask` is true, in the order of x flattened."""

    indices: Tensor
    """[Y] of the elements that are kept."""

    def __init__(self, mask: Tensor) -> None:
        """`mask` is of the shape of x."""
        flat = mask.flatten().bool()
        if not bool(flat.any()):
            raise ValueError("the mask keeps no pixel; at least one must be measured")
        super().__init__(tuple(mask.shape), (int(flat.sum()),))
        self.mask = mask.bool()
        self.register_buffer("indices", flat.nonzero().squeeze(1))

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return value.flatten(1)[:, self.indices]

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`: zeros where nothing was seen."""
        image = measurement.new_zeros(len(measurement), self.mask.numel())
        return image.index_copy(1, self.indices, measurement).reshape(-1, *self.event_shape)

    def spectrum(self) -> Spectrum:
        """See `LinearOperator`: A A^T = I."""
        ones = torch.ones(len(self.indices), dtype=torch.float64, device=self.indices.device)
        return Spectrum(ones, lambda value: value, lambda value: value)


def box_mask(event_shape: tuple[int, ...], top: int, left: int, height: int, width: int) -> Tensor:
    """A mask (true: seen) for images [C, H, W] that a box of `height` x `width` pixels at (`top`, `left`) hides."""
    *_, rows, columns = event_shape
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise ValueError(
            f"the hidden box must lie within the {rows} x {columns} pixels, got {height} x {width} at ({top}, {left})"
        )
    mask = torch.ones(event_shape, dtype=torch.bool)
    mask[..., top : top + height, left : left + width] = False
    return mask


def random_mask(event_shape: tuple[int, ...], hidden: float, seed: int = 0) -> Tensor:
    """A mask (true: seen) for images [C, H, W] that hides the fraction `hidden` of pixels, alike in all channels."""
    if not 0 <= hidden < 1:
        raise ValueError(f"the hidden fraction must be within [0, 1), got {hidden}")
    *_, rows, columns = event_shape
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
    seen = torch.zeros(rows * columns, dtype=torch.bool)
    seen[order[round(hidden * rows * columns) :]] = True
    return seen.reshape(rows, columns).expand(event_shape).clone()
