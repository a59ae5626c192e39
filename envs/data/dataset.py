"""A data set: draws of x to train a prior on, and others that it does not see.

Images are [C, H, W] with values in [-1, 1]; vectors keep their units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Dataset", "parted", "scaled"]

HELD_OUT_SHARE = 10  # one in so many draws, of data that come without a split


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Draws of x in two parts."""

    name: str
    """What it is called."""
    train: Tensor
    """[N, *D] float32."""
    held_out: Tensor
    """[M, *D] float32, never trained on."""
    split: str
    """How the parts were told apart, in words."""
    source: str
    """Where the data come from."""
    licence: str
    """What is known of their licence."""
    train_labels: Tensor | None = None
    """[N] int64 class of each draw, where there are classes."""
    held_out_labels: Tensor | None = None
    """[M] int64."""
    value_range: tuple[float, float] | None = None
    """Smallest and largest value that x can have, where there are such."""

    def __post_init__(self) -> None:
        for name, values, labels in (
            ("train", self.train, self.train_labels),
            ("held_out", self.held_out, self.held_out_labels),
        ):
            if values.dtype != torch.float32 or values.ndim < 2 or not len(values):
                raise ValueError(
                    f"{name} of data set {self.name!r} must be float32 [N, *D], N > 0, "
                    f"got {values.dtype} {list(values.shape)}"
                )
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} of data set {self.name!r} has values that are not finite")
            low, high = (float(values.min()), float(values.max()))
            if self.value_range is not None and not (self.value_range[0] <= low and high <= self.value_range[1]):
                raise ValueError(
                    f"{name} of data set {self.name!r} must be within {list(self.value_range)}, got {low:g} to {high:g}"
                )
            if labels is not None and labels.shape != (len(values),):
                raise ValueError(f"{name} of data set {self.name!r} needs {len(values)} labels, got {len(labels)}")
        if self.train.shape[1:] != self.held_out.shape[1:]:
            raise ValueError(
                f"x of data set {self.name!r} has shape {list(self.train.shape[1:])} in train and "
                f"{list(self.held_out.shape[1:])} in held_out"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return tuple(self.train.shape[1:])

    @property
    def data_std(self) -> float:
        """Standard deviation of x per dimension: the root of the mean variance of its elements."""
        return float(self.train.double().var(0, correction=0).mean().sqrt())


def scaled(values: NDArray[Any], limits: tuple[float, ...] | None = None) -> Tensor:
    """float32 `values` with `limits` moved to -1 and 1; by default those of the integer type, or of the values.

    Raises:
        ValueError: limits that are not increasing, or values that are all the same or not finite.
    """
    if limits is None and values.dtype.kind == "u":
        limits = (0.0, float(np.iinfo(values.dtype).max))
    if not np.isfinite(values).all():
        wrong = np.argwhere(~np.isfinite(values))
        place = tuple(wrong[0])
        raise ValueError(
            f"values must be finite, got {len(wrong)} others of {values.size}, the first {values[place]} at "
            f"{[int(index) for index in place]}"
        )
    limits = (float(values.min()), float(values.max())) if limits is None else limits
    if len(limits) != 2:
        raise ValueError(f"limits are two numbers, those that become -1 and 1, got {len(limits)}")
    low, high = limits
    if not low < high:
        raise ValueError(f"the limits that become -1 and 1 must increase, got {low} and {high}")
    shifted = torch.from_numpy(values.astype(np.float32)).sub_(low)
    return shifted.mul_(2).div_(high - low).sub_(1)  # in this order the limits become -1 and 1 without rounding


def parted(count: int) -> tuple[Tensor, Tensor, str]:
    """Rows to train on and rows to hold out of `count`, and how it was done: a random tenth, always the same."""
    if count < 2:
        raise ValueError(f"a data set needs two draws at least, one to hold out, got {count}")
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out = max(count // HELD_OUT_SHARE, 1)
    split = f"{held_out:,} of {count:,} are held out, chosen at random (seed 0)"
    return rows[held_out:].sort().values, rows[:held_out].sort().values, split
