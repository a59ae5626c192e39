"""`image-nonlinear-deblurring`: an image behind a blur that depends on its brightness."""

from __future__ import annotations

from envs.operators import NonlinearBlurSurrogate
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["nonlinear_deblurring"]


@image_problem("image-nonlinear-deblurring")
def nonlinear_deblurring(
    shape: Shape, *, std: float = 1.0, gain: float = 1.0, weight: float = 0.3
) -> NonlinearBlurSurrogate:
    """An image behind a blur of `std` pixels that grows with brightness; a surrogate, see its operator."""
    return NonlinearBlurSurrogate(shape, std, gain, weight)
