"""`image-hdr`: an image whose range is too wide for the detector."""

from __future__ import annotations

from envs.operators import Clipped
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["high_dynamic_range"]


@image_problem("image-hdr")
def high_dynamic_range(shape: Shape, *, gain: float = 2.0) -> Clipped:
    """An image times `gain`, clipped to [-1, 1]."""
    return Clipped(shape, gain)
