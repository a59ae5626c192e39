r"""How far a measurement moves the estimate of x, by how uncertain that is, and along which directions.

Take p(x | s) for N(x^, S), and the log-likelihood for its expansion about x^ to second order, of gradient g and of
curvature -H. Then

    E[x | s, y] - x^ = S (I + H S)^-1 g,

a step of Newton's, or of Gauss and Newton's where H is the Fisher information. For a Gaussian prior, a linear A and
noise of covariance R it is exact, S A^T (A S A^T + R)^-1 (y - A x^), and the guidance by Tweedie's moments of Boys et
al. 2023 (arXiv 2310.06721); with S = v I it is pseudoinverse guidance (Song et al. 2023, ICLR).

The equation is solved by conjugate gradients in the inner product a^T S b, in which I + H S is symmetric and positive.
They need products with S and H alone, and end early without harm: every iterate is a step in an uphill direction. They
end where nothing is left to solve: after two for a mask and S = v I, as there are as many as different eigenvalues.

The slope of a network's x^ need not be a covariance, nor has noise that was learned a curvature of one sign. Along a
direction d with d^T S (I + H S) d < d^T S d / 2 the expansion has no maximum, and a row that meets one stays there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.kernel import expand

__all__ = ["ITERATIONS", "Product", "newton_shift"]

ITERATIONS = 8
LEAST_CURVATURE = 0.5  # of a direction, over that of the prior alone, of which it is at least 1 if H is not negative

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix of each row times [N, *D]."""


def newton_shift(
    gradient: Tensor,
    covariance: Product,
    information: Product,
    iterations: int = ITERATIONS,
    tolerance: float | None = None,
) -> Tensor:
    """[N, *D] S (I + H S)^-1 g for g = `gradient` [N, *D], S = `covariance`, H = `information`.

    It ends where the residual, as g in the norm of S, is `tolerance` of what it was; None: where rounding ends it.
    """
    residual = direction = gradient
    turned = covariance(residual)  # S times the direction
    square = _dot(residual, turned)
    enough = (torch.finfo(square.dtype).eps ** 1.5 if tolerance is None else tolerance**2) * square
    shift, going = gradient.new_zeros(gradient.shape), torch.ones_like(square, dtype=torch.bool)
    for left in reversed(range(iterations)):
        curved = information(turned)
        spread = _dot(direction, turned)
        curvature = spread + _dot(turned, curved)
        going = going & (square > enough) & (spread > 0) & (curvature > LEAST_CURVATURE * spread)
        length = _ratio(square, curvature, going)
        shift = shift + expand(length, shift) * turned
        if not left or not bool(going.any()):
            break
        residual = residual - expand(length, shift) * (direction + curved)
        turned_residual = covariance(residual)
        last, square = square, _dot(residual, turned_residual)
        share = expand(_ratio(square, last, going), shift)
        direction, turned = residual + share * direction, turned_residual + share * turned
    return shift


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1)


def _ratio(above: Tensor, below: Tensor, where: Tensor) -> Tensor:
    """[N] quotient, zero but `where` it is true."""
    return torch.where(where, above / torch.where(where, below, 1.0), 0.0)
