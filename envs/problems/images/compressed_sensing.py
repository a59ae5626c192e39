"""`image-compressed-sensing`: an image from fewer inner products than it has pixels."""

from __future__ import annotations

import torch

from envs.operators import Matrix, random_projections
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["compressed_sensing"]


@image_problem("image-compressed-sensing")
def compressed_sensing(shape: Shape, *, fraction: float = 0.25, matrix_seed: int = 0) -> Matrix:
    """Inner products with Gaussian vectors, `fraction` as many as there are pixels, drawn with `matrix_seed`."""
    return random_projections(shape, round(fraction * torch.Size(shape).numel()), matrix_seed)
