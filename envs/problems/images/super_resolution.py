"""`image-super-resolution`: an image from one of fewer pixels."""

from __future__ import annotations

from typing import Literal, cast

from envs.operators import Separable, lower_resolution
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["super_resolution"]


@image_problem("image-super-resolution")
def super_resolution(shape: Shape, *, factor: int = 2, method: str = "mean") -> Separable:
    """An image from one of 1 / `factor` the size, by `mean` over blocks or `bicubic` with antialiasing."""
    return lower_resolution(shape, factor, cast(Literal["mean", "bicubic"], method))
