"""`image-quantisation`: an image in numbers of few digits; the likelihood has no gradient."""

from __future__ import annotations

from envs.operators import Quantised
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["quantisation"]


@image_problem("image-quantisation", gradient=False)
def quantisation(shape: Shape, *, levels: int = 4) -> Quantised:
    """An image in `levels` equal steps of brightness, as a black box."""
    return Quantised(shape, levels)
