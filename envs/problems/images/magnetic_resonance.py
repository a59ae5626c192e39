"""`image-mri`: an image from some of its frequencies."""

from __future__ import annotations

from envs.operators import MaskedFourier, random_lines
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["magnetic_resonance"]


@image_problem("image-mri")
def magnetic_resonance(
    shape: Shape, *, acceleration: float = 2.0, centre: float = 0.125, mask_seed: int = 0
) -> MaskedFourier:
    """One in `acceleration` lines of frequencies; the lowest, a fraction `centre`, always, others by `mask_seed`."""
    return MaskedFourier(shape, random_lines(*shape[1:], acceleration, centre, mask_seed))
