"""`image-quantisation`: an image in numbers of few digits; the likelihood has no gradient, guides go by a surrogate."""

from __future__ import annotations

import math

from torch import Tensor, nn

from envs.likelihoods import GaussianLikelihood
from envs.operators import Quantised
from envs.problems.images.image_problem import Shape, image_problem

__all__ = ["quantisation"]


class Unrounded(nn.Module):
    """y = x."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.measurement_shape = event_shape

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return value


def unrounded(operator: Quantised, noise_std: float) -> GaussianLikelihood:
    """The surrogate: y = x, and the error of rounding is noise as well, of variance step^2 / 12."""
    return GaussianLikelihood(
        Unrounded(operator.measurement_shape), math.hypot(noise_std, operator.step / math.sqrt(12))
    )


@image_problem("image-quantisation", surrogate=unrounded)
def quantisation(shape: Shape, *, levels: int = 4) -> Quantised:
    """An image in `levels` equal steps of brightness, as a black box."""
    return Quantised(shape, levels)
