r"""Closure phases and log closure amplitudes of an image: see `envs.data.closures` for what they are.

    psi = sum_t s_t arg V_t, in (-pi, pi],    lambda = log|V_a| + log|V_b| - log|V_c| - log|V_d|.

Not linear, and blind to the image's total flux (of lambda) and place (of psi).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from envs.operators.base import ForwardOperator

__all__ = ["Closures", "wrapped"]

TINY = 1e-30  # of |V|^2: a visibility of exactly zero has no phase and no logarithm


class Closures(nn.Module):
    """From x to closures y [P + L], phases first, in radians and nats."""

    phases: Tensor
    """[P, K] signs with which the phases of visibilities are added; a product is faster than gathering, and its
    gradient much faster."""
    amplitudes: Tensor
    """[L, K] the same of log amplitudes."""

    def __init__(self, visibilities: ForwardOperator, triangles: Tensor, signs: Tensor, quadrangles: Tensor) -> None:
        """`visibilities` gives [N, K, 2]; `triangles` and `signs` [P, 3], `quadrangles` [L, 4]: see `ClosureSet`."""
        super().__init__()
        shape = tuple(visibilities.measurement_shape)
        if len(shape) != 2 or shape[1] != 2:
            raise ValueError(f"closures are of visibilities [K, 2], got an operator to {shape}")
        if triangles.shape != signs.shape or triangles.shape[1:] != (3,) or quadrangles.shape[1:] != (4,):
            raise ValueError(
                f"triangles and signs must be [P, 3] and quadrangles [L, 4], got {tuple(triangles.shape)}, "
                f"{tuple(signs.shape)} and {tuple(quadrangles.shape)}"
            )
        for name, rows in (("triangles", triangles), ("quadrangles", quadrangles)):
            if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < shape[0]):
                raise ValueError(f"{name} must be rows 0..{shape[0] - 1} of the visibilities, got {int(rows.max())}")
        self.visibilities = visibilities
        self.num_phases = len(triangles)
        """P."""
        self.measurement_shape: tuple[int, ...] = (len(triangles) + len(quadrangles),)
        above_below = torch.tensor([1.0, 1.0, -1.0, -1.0]).expand(len(quadrangles), 4)
        self.register_buffer("phases", _design(triangles, signs, shape[0]))
        self.register_buffer("amplitudes", _design(quadrangles, above_below, shape[0]))

    def forward(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`."""
        real, imaginary = self.visibilities(value).unbind(-1)
        phase = torch.atan2(imaginary, real)
        log_amplitude = 0.5 * (real.square() + imaginary.square()).clamp_min(TINY).log()
        closed = wrapped(phase @ self.phases.to(phase).T), log_amplitude @ self.amplitudes.to(phase).T
        return torch.cat(closed, 1)


def _design(rows: Tensor, signs: Tensor, count: int) -> Tensor:
    """[closures, K] float64 `signs` at the visibilities `rows`."""
    return torch.zeros(len(rows), count, dtype=torch.float64).scatter_add_(1, rows.long(), signs.double())


def wrapped(angle: Tensor) -> Tensor:
    """`angle` in radians, moved to (-pi, pi] by whole turns."""
    return math.pi - torch.remainder(math.pi - angle, 2 * math.pi)
