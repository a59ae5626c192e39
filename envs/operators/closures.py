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

    triangles: Tensor
    signs: Tensor
    quadrangles: Tensor

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
        self.measurement_shape = (len(triangles) + len(quadrangles),)
        self.register_buffer("triangles", triangles.long())
        self.register_buffer("signs", signs.double())
        self.register_buffer("quadrangles", quadrangles.long())

    def forward(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`."""
        real, imaginary = self.visibilities(value).unbind(-1)
        phase = torch.atan2(imaginary, real)[:, self.triangles]  # [N, P, 3]
        log_amplitude = 0.5 * (real.square() + imaginary.square()).clamp_min(TINY).log()[:, self.quadrangles]
        above, below = log_amplitude[..., :2].sum(-1), log_amplitude[..., 2:].sum(-1)
        return torch.cat([wrapped((phase * self.signs.to(phase)).sum(-1)), above - below], 1)


def wrapped(angle: Tensor) -> Tensor:
    """`angle` in radians, moved to (-pi, pi] by whole turns."""
    return math.pi - torch.remainder(math.pi - angle, 2 * math.pi)
