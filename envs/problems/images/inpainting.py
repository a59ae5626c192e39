"""`image-inpainting`: some pixels are missing."""

from __future__ import annotations

from envs.operators import Pixels, box_mask, random_mask
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["inpainting"]


@image_problem("image-inpainting")
def inpainting(shape: Shape, *, mask: str = "box", hidden: float = 0.5, mask_seed: int = 0) -> Pixels:
    """An image without a `box` in its middle of half its height and width, its right `half`, or `random` pixels.

    `hidden` is the fraction of pixels that a `random` mask hides, drawn with `mask_seed`.
    """
    _, rows, columns = shape
    if mask == "box":
        return Pixels(box_mask(shape, rows // 4, columns // 4, rows // 2, columns // 2))
    if mask == "half":
        return Pixels(box_mask(shape, 0, columns // 2, rows, columns - columns // 2))
    if mask == "random":
        return Pixels(random_mask(shape, hidden, mask_seed))
    raise ValueError(f"mask must be box, half or random, got {mask!r}")
