r"""Chaotic systems whose equations of motion are of the form  x' = b + A x + (B x) (C x),  element by element.

Lorenz 1963 (J. Atmos. Sci. 20, 130), convection, s = 10, r = 28, b = 8/3, x = (x, y, z):

    x' = s (y - x),    y' = x (r - z) - y,    z' = x y - b z.

Lorenz 1996 (Predictability: a problem partly solved, ECMWF), weather on a circle of latitude, F = 8, 40 elements:

    x_i' = (x_i+1 - x_i-2) x_i-1 - x_i + F.

Henon and Heiles 1964 (Astron. J. 69, 73), a star in the plane of a galaxy, place (u, v) and velocity (p, q) in units in
which small orbits have a period of 2 pi, x = (u, v, p, q):

    u' = p,    v' = q,    p' = -u - 2 u v,    q' = -v - u^2 + v^2,

which keeps the energy E = (p^2 + q^2 + u^2 + v^2) / 2 + u^2 v - v^3 / 3. Orbits of E < 1/6 stay.

Form and matrices make two operations of a derivative, whatever the system.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["SYSTEMS", "Quadratic", "System", "orbit_energy"]

FORCING, SIZE = 8.0, 40


class Quadratic(nn.Module):
    """x [N, D] to x' [N, D]."""

    matrix: Tensor
    offset: Tensor

    def __init__(self, offset: Tensor, linear: Tensor, left: Tensor, right: Tensor) -> None:
        """`offset` b [D]; `linear` A, `left` B and `right` C [D, D]."""
        super().__init__()
        zeros = torch.zeros(2 * len(offset), dtype=torch.float64)
        self.register_buffer("matrix", torch.cat([linear, left, right]).double().T.contiguous(), persistent=False)
        self.register_buffer("offset", torch.cat([offset.double(), zeros]), persistent=False)
        self._converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, state: Tensor) -> Tensor:
        """See `envs.operators.evolution.Derivative`."""
        key = (state.dtype, state.device)
        if key not in self._converted:
            self._converted[key] = (self.offset.to(state), self.matrix.to(state))
        linear, left, right = torch.addmm(self._converted[key][0], state, self._converted[key][1]).chunk(3, 1)
        return torch.addcmul(linear, left, right)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class System:
    """A system of ordinary differential equations."""

    derivative: Quadratic
    """x to x'."""
    elements: tuple[str, ...]
    """Name of every element of x."""
    step: float
    """Of Runge-Kutta, in the system's unit of time."""
    exponent: float
    """Largest Lyapunov exponent, per unit of time."""
    bound: float
    """Well outside of where the system lives; see `envs.operators.Evolution`."""


def _lorenz63() -> Quadratic:
    linear = torch.tensor([[-10.0, 10.0, 0.0], [28.0, -1.0, 0.0], [0.0, 0.0, -8.0 / 3.0]], dtype=torch.float64)
    left = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    right = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    return Quadratic(torch.zeros(3), linear, left, right)


def _lorenz96() -> Quadratic:
    unit = torch.eye(SIZE)
    following, before, second = unit.roll(1, 1), unit.roll(-1, 1), unit.roll(-2, 1)  # x_i+1, x_i-1, x_i-2
    return Quadratic(torch.full((SIZE,), FORCING), -unit, following - second, before)


def _henon_heiles() -> Quadratic:
    linear, left, right = torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)
    linear[0, 2] = linear[1, 3] = 1.0
    linear[2, 0] = linear[3, 1] = -1.0
    left[2, 0], right[2, 1] = -2.0, 1.0  # -2 u v
    left[3, 1], left[3, 0], right[3, 0], right[3, 1] = 1.0, -1.0, 1.0, 1.0  # (v - u) (v + u)
    return Quadratic(torch.zeros(4), linear, left, right)


def orbit_energy(state: Tensor) -> Tensor:
    """[N] E of (u, v, p, q) [N, 4] in the potential of Henon and Heiles."""
    u, v, p, q = state.unbind(1)
    return 0.5 * (p**2 + q**2 + u**2 + v**2) + u**2 * v - v**3 / 3


# Exponents: Sprott 2003 (Chaos and Time-Series Analysis) for 1963; 1.67 is that of 40 elements for 1996 (Lorenz and
# Emanuel 1998, J. Atmos. Sci. 55, 399, have errors double in 0.42, which is 1.65); the last one is measured: see tests.
SYSTEMS: dict[str, System] = {
    "lorenz63": System(derivative=_lorenz63(), elements=("x", "y", "z"), step=0.02, exponent=0.906, bound=300.0),
    "lorenz96": System(
        derivative=_lorenz96(),
        elements=tuple(f"x{index}" for index in range(SIZE)),
        step=0.05,
        exponent=1.67,
        bound=100.0,
    ),
    "henon-heiles": System(
        derivative=_henon_heiles(), elements=("u", "v", "p", "q"), step=0.2, exponent=0.05, bound=10.0
    ),
}
"""By name, as in that of the problem."""
