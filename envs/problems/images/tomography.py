"""`image-tomography`: an image from what rays through it lose."""

from __future__ import annotations

from envs.operators import SparseMatrix, radon
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["tomography"]


@image_problem("image-tomography")
def tomography(shape: Shape, *, angles: int = 6) -> SparseMatrix:
    """Means along parallel rays at `angles` angles: line integrals over the image's width, in units of its pixels."""
    return radon(shape, angles, pixel_size=1 / shape[-1])
