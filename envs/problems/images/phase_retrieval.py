"""`image-phase-retrieval`: an image from the magnitudes of its Fourier transform."""

from __future__ import annotations

from envs.operators import CodedMagnitudes, FourierMagnitudes
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["phase_retrieval"]


@image_problem("image-phase-retrieval")
def phase_retrieval(shape: Shape, *, masks: int = 0, oversampling: int = 2) -> FourierMagnitudes | CodedMagnitudes:
    """Magnitudes of the image padded to `oversampling` times its size, or behind `masks` of random signs."""
    return CodedMagnitudes(shape, masks) if masks else FourierMagnitudes(shape, oversampling)
