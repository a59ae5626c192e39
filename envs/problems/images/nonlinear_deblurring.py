"""`image-nonlinear-deblurring`: an image behind a blur that depends on its brightness."""

from __future__ import annotations

from pathlib import Path

from envs.operators import EncodedBlur, NonlinearBlurSurrogate
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["nonlinear_deblurring"]


@image_problem("image-nonlinear-deblurring")
def nonlinear_deblurring(
    shape: Shape,
    *,
    network: str | None = None,
    kernel_seed: int = 0,
    std: float = 1.0,
    gain: float = 1.0,
    weight: float = 0.3,
) -> EncodedBlur | NonlinearBlurSurrogate:
    """An image behind a blur of `std` pixels that grows with brightness, or that of a `network` (file of weights).

    Without a network it is a surrogate of `std`, `gain` and `weight`, see its operator. `kernel_seed` draws the blur of
    either.
    """
    if network is not None:
        return EncodedBlur(shape, Path(network), kernel_seed)
    return NonlinearBlurSurrogate(shape, std, gain, weight, kernel_seed)
