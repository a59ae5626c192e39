"""`image-deblurring`: an image behind a blur."""

from __future__ import annotations

from typing import Literal, cast

from envs.operators import Convolution, gaussian_kernel, motion_kernel
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["deblurring"]


@image_problem("image-deblurring")
def deblurring(
    shape: Shape,
    *,
    kernel: str = "gaussian",
    std: float = 1.0,
    size: int = 7,
    boundary: str = "zero",
    kernel_seed: int = 0,
) -> Convolution:
    """An image behind a `gaussian` blur of `std` pixels, or the shake of a camera (`motion`), of `size` pixels.

    Beyond the `boundary` the image is zero or periodic. `kernel_seed` draws the shake.
    """
    if kernel not in ("gaussian", "motion"):
        raise ValueError(f"kernel must be gaussian or motion, got {kernel!r}")
    weights = gaussian_kernel(std, size) if kernel == "gaussian" else motion_kernel(size, kernel_seed)
    return Convolution(shape, weights, cast(Literal["periodic", "zero"], boundary))
