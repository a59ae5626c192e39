r"""Closure phases and log closure amplitudes of a table of visibilities: what does not depend on the stations' gains.

Measured are V_ij = g_i g_j* I_ij + noise with unknown complex gains g. Around a triangle and a quadrangle of stations

    psi_ijk = arg V_ij + arg V_jk - arg V_ik,    lambda_ijkl = log|V_ij| + log|V_kl| - log|V_ik| - log|V_jl|

no gain is left (Jennison 1958; Twiss et al. 1960; Blackburn et al. 2020, ApJ 894, 31). Of n stations at a time
(n - 1)(n - 2) / 2 phases and n (n - 3) / 2 amplitudes are independent: of all that there are those of least variance
are taken, as long as each is independent of those before. With r = std / |V| both arg V and log|V| have the variance
r^2 and no covariance, to first order in r; closures that share a baseline are correlated, and their whole covariance is
kept. log|V| needs no correction for noise: its mean is off by E_1(1 / 2 r^2) / 2, 1e-3 for r = 1/3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from envs.data.visibilities import VisibilityTable

__all__ = ["ClosureSet", "closure_set"]

Row = tuple[tuple[int, ...], tuple[float, ...]]
"""Visibilities of a closure and their signs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClosureSet:
    """A set of independent closures of K visibilities."""

    triangles: NDArray[np.int64]
    """[P, 3] visibilities of each closure phase."""
    signs: NDArray[np.float64]
    """[P, 3] with which their phases are added."""
    quadrangles: NDArray[np.int64]
    """[L, 4] visibilities of each log closure amplitude: the first two over the last two."""
    value: NDArray[np.float64]
    """[P + L] phases in (-pi, pi], then log amplitudes."""
    covariance: NDArray[np.float64]
    """[P + L, P + L] of the noise."""


def closure_set(table: VisibilityTable, systematic: float = 0.0) -> ClosureSet:
    """The independent closures of each time of `table`, which must have one row a baseline and time.

    `systematic` is a fraction of |V| that is added to the noise in quadrature: what does not close for other reasons.

    Raises:
        ValueError: no times or stations, a baseline twice at one time, or no closure at all.
    """
    if table.time is None or table.stations is None:
        raise ValueError(f"{table.name}: closures need the time and the two stations of each visibility")
    amplitude = np.abs(table.value)
    if not (amplitude > 0).all():
        row = int((amplitude == 0).argmax())
        raise ValueError(
            f"{table.name}: {(amplitude == 0).sum()} visibilities are zero and have no phase, the first of baseline "
            f"{'-'.join(table.stations[row])} at {table.time[row]:.4f} h"
        )
    relative = (table.std / amplitude) ** 2 + systematic**2
    count = len(table)
    triangles: list[Row] = []
    quadrangles: list[Row] = []
    for moment in np.unique(table.time):
        rows = np.flatnonzero(table.time == moment)
        pairs: dict[tuple[str, str], tuple[int, float]] = {}
        for row in rows.tolist():
            one, other = table.stations[row].tolist()
            if (one, other) in pairs:
                raise ValueError(
                    f"{table.name}: baseline {one}-{other} is there twice at {moment:.4f} h; average first"
                )
            pairs[one, other], pairs[other, one] = (row, 1.0), (row, -1.0)
        names = sorted({name for pair in pairs for name in pair})
        triangles += _independent(_triangles(names, pairs), relative, count)
        quadrangles += _independent(_quadrangles(names, pairs), relative, count)
    if not triangles and not quadrangles:
        raise ValueError(f"{table.name}: no three stations see the source at one time, so there is no closure")
    phase, amplitudes = _design(triangles, count), _design(quadrangles, count)
    whole = np.zeros((len(triangles) + len(quadrangles),) * 2)
    whole[: len(triangles), : len(triangles)] = (phase * relative) @ phase.T
    whole[len(triangles) :, len(triangles) :] = (amplitudes * relative) @ amplitudes.T
    turned = phase @ np.angle(table.value)
    return ClosureSet(
        triangles=np.array([where for where, _ in triangles], np.int64).reshape(-1, 3),
        signs=np.array([signs for _, signs in triangles]).reshape(-1, 3),
        quadrangles=np.array([where for where, _ in quadrangles], np.int64).reshape(-1, 4),
        value=np.concatenate([-((np.pi - turned) % (2 * np.pi) - np.pi), amplitudes @ np.log(np.abs(table.value))]),
        covariance=whole,
    )


def _triangles(names: list[str], pairs: dict[tuple[str, str], tuple[int, float]]) -> Iterator[Row]:
    for i, j, k in combinations(names, 3):
        sides = [(i, j), (j, k), (k, i)]
        if all(side in pairs for side in sides):
            rows, signs = zip(*(pairs[side] for side in sides), strict=True)
            yield tuple(rows), tuple(signs)


def _quadrangles(names: list[str], pairs: dict[tuple[str, str], tuple[int, float]]) -> Iterator[Row]:
    for i, j, k, m in combinations(names, 4):
        halves = [((i, j), (k, m)), ((i, k), (j, m)), ((i, m), (j, k))]
        for above, below in combinations(halves, 2):
            if all(side in pairs for side in (*above, *below)):
                yield tuple(pairs[side][0] for side in (*above, *below)), (1.0, 1.0, -1.0, -1.0)


def _independent(rows: Iterator[Row], relative: NDArray[np.float64], count: int) -> list[Row]:
    """Of `rows` those of least variance that are linearly independent."""
    chosen: list[Row] = []
    basis = np.empty((0, count))
    for row in sorted(rows, key=lambda each: relative[list(each[0])].sum()):
        vector = _design([row], count)[0]
        rest = vector - (vector @ basis.T) @ basis
        if (length := np.linalg.norm(rest)) > 1e-6:
            chosen.append(row)
            basis = np.concatenate([basis, rest[None] / length])
    return chosen


def _design(rows: list[Row], count: int) -> NDArray[np.float64]:
    """[closures, K] signs of the visibilities in each closure."""
    matrix = np.zeros((len(rows), count))
    for index, (where, signs) in enumerate(rows):
        matrix[index, list(where)] = signs
    return matrix
