r"""`manywell`: independent double wells in the plane (Noe et al. 2019; Midgley et al. 2023), 2^(D/2) modes.

    log rho(x) = sum over pairs of  -a^4 + 6 a^2 + a / 2  -  b^2 / 2,    (a, b) = (x_2i, x_2i+1).

The right-hand well of each pair holds most of the mass. Z = (Z_a sqrt(2 pi))^(D/2) with Z_a by quadrature.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import binom
from torch import Tensor

from envs.energy import energy_problem
from envs.problem import Classes, InverseProblem
from envs.registry import register

__all__ = ["Manywell", "manywell"]

# Of s_0, smaller than the base's: the control that denoises the target then loses 0.66 nats of 32 dimensions in 100
# steps, not 1.29.
START_STD = 0.6
POINTS, EDGE = 40_001, 4.0  # log rho is below -150 beyond the edge, and smooth on the scale of the spacing


def _well(a: Tensor) -> Tensor:
    square = a.square()
    return -square.square() + 6 * square + 0.5 * a


class Manywell:
    """The density, its evidence, and exact draws by inversion of the well's distribution function."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        grid = torch.linspace(-EDGE, EDGE, POINTS, dtype=torch.float64)
        density = _well(grid).exp()
        cells = 0.5 * (density[1:] + density[:-1]) * (2 * EDGE / (POINTS - 1))
        total = float(cells.sum())
        self._grid, self._cumulative = grid, torch.cat([torch.zeros(1, dtype=torch.float64), cells.cumsum(0)]) / total
        self.log_partition = (dim // 2) * (math.log(total) + 0.5 * math.log(2 * math.pi))
        self.right = float(1 - self._cumulative[POINTS // 2])
        """Probability of the right-hand well."""
        first = float((density * grid).sum() / density.sum())
        second = float((density * grid.square()).sum() / density.sum())
        self.mean = torch.tensor([first, 0.0], dtype=torch.float64).repeat(dim // 2)
        self.variance = torch.tensor([second - first**2, 1.0], dtype=torch.float64).repeat(dim // 2)

    def __call__(self, value: Tensor) -> Tensor:
        """[N] log rho(x) of x = `value` [N, D], nats, not normalised."""
        return _well(value[:, ::2]).sum(1) - 0.5 * value[:, 1::2].square().sum(1)

    def gradient(self, value: Tensor) -> Tensor:
        """[N, D] of log rho at `value` [N, D]."""
        wells = value[:, ::2]
        slope = 12 * wells - 4 * wells * wells.square() + 0.5
        return torch.stack([slope, -value[:, 1::2]], 2).flatten(1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] draws, float64; exact but for the grid of 2e-4."""
        pairs = self.dim // 2
        uniform = torch.rand(count, pairs, generator=generator, dtype=torch.float64)
        upper = torch.searchsorted(self._cumulative, uniform).clamp(1, POINTS - 1)
        low, high = self._cumulative[upper - 1], self._cumulative[upper]
        share = (uniform - low) / (high - low).clamp_min(1e-300)
        wells = self._grid[upper - 1] + share * (self._grid[upper] - self._grid[upper - 1])
        normal = torch.randn(count, pairs, generator=generator, dtype=torch.float64)
        return torch.stack([wells, normal], 2).flatten(1)

    def count_right(self, value: Tensor) -> Tensor:
        """[N, D/2 + 1] one-hot number of pairs of x = `value` [N, D] that are in the right-hand well."""
        right = (value[:, ::2] > 0).sum(1)
        return torch.nn.functional.one_hot(right, self.dim // 2 + 1).double()


@register("manywell")
def manywell(
    *, dim: int = 32, num_steps: int = 100, schedule: str = "vp-cosine-zero-snr", base_std: float = 1.7
) -> InverseProblem:
    """`dim` / 2 double wells; classes count how many of them are in their right-hand well."""
    if dim < 2 or dim % 2:
        raise ValueError(f"manywell needs an even dim >= 2, got {dim}")
    exact, pairs = Manywell(dim), dim // 2
    shares = torch.from_numpy(binom.pmf(range(pairs + 1), pairs, exact.right))
    names = tuple(f"{count} right" for count in range(pairs + 1))
    return energy_problem(
        "manywell",
        exact,
        dim,
        base_std=base_std,
        num_steps=num_steps,
        schedule=schedule,
        start_std=START_STD,
        exact=exact,
        classes=Classes(names, exact.count_right, shares[None]),
    )
