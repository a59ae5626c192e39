"""`image-denoising`: every pixel is seen, with noise."""

from __future__ import annotations

import torch

from envs.operators import Pixels
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["denoising"]


@image_problem("image-denoising")
def denoising(shape: Shape) -> Pixels:
    """All pixels of an image, with noise."""
    return Pixels(torch.ones(shape, dtype=torch.bool))
