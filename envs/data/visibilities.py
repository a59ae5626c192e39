"""A table of visibilities, and averages of it.

Units: u and v in wavelengths, V in Jy, time in hours UTC since midnight of the first day. `std` is the standard
deviation of the real part and of the imaginary part, each: a weight w in Jy^-2 stands for std = 1 / sqrt(w).

An average over a cell takes a source away from the phase centre for weaker than it is. Over a cell of width c in u
(evenly filled) a point at offset l keeps the fraction sinc(c l) = 1 - (pi c l)^2 / 6 + ..., and likewise in v
(Bridle and Schwab 1999, ASP Conf. Ser. 180, 371): for c = 0.25 / field of view at most 2.6 % at the field's edge and
0.6 % halfway. In t seconds u moves by 7.3e-5 t times the baseline's length at most.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["VisibilityTable", "average_in_cells", "average_in_time"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisibilityTable:
    """Visibilities with their noise, without flagged ones."""

    name: str
    """Where they come from."""
    u: NDArray[np.float64]
    """[K] wavelengths, towards the east."""
    v: NDArray[np.float64]
    """[K] wavelengths, towards the north."""
    value: NDArray[np.complex128]
    """[K] Jy."""
    std: NDArray[np.float64]
    """[K] Jy, of the real and of the imaginary part."""
    time: NDArray[np.float64] | None = None
    """[K] hours, where known."""
    stations: NDArray[np.str_] | None = None
    """[K, 2] names of the two stations, where known; u and v are the second's place less that of the first."""
    flagged: int = 0
    """How many rows of the file were left out as flagged."""

    def __post_init__(self) -> None:
        count = len(self.u)
        shapes = {name: getattr(self, name) for name in ("v", "value", "std", "time")}
        wrong = {key: part.shape for key, part in shapes.items() if part is not None and part.shape != (count,)}
        if not count or wrong or (self.stations is not None and self.stations.shape != (count, 2)):
            raise ValueError(
                f"{self.name}: a table of visibilities needs K > 0 of each column, got {count} and {wrong}"
            )
        if not (np.isfinite(self.u) & np.isfinite(self.v) & np.isfinite(self.value)).all():
            raise ValueError(f"{self.name}: u, v and the visibilities must be finite")
        if not ((self.std > 0) & np.isfinite(self.std)).all():
            raise ValueError(f"{self.name}: every standard deviation must be positive and finite, in Jy")

    def __len__(self) -> int:
        return len(self.u)

    @property
    def baseline(self) -> NDArray[np.float64]:
        """[K] lengths sqrt(u^2 + v^2), wavelengths."""
        return np.hypot(self.u, self.v)

    def with_std(self, std: NDArray[np.float64]) -> VisibilityTable:
        """The same with standard deviations `std` [K], Jy, where the file's weights are not what they should be."""
        return replace(self, std=std)

    def where(self, kept: NDArray[np.bool_], reason: str) -> VisibilityTable:
        """The rows where `kept` [K]; how many are left out, and the `reason`, goes to the log."""
        if not kept.any():
            raise ValueError(f"{self.name}: no visibility is left of {len(self)} that are {reason}")
        if not kept.all():
            _log.info(
                "%s: %d of %d visibilities are left out that are not %s", self.name, (~kept).sum(), len(self), reason
            )
        return replace(
            self,
            u=self.u[kept],
            v=self.v[kept],
            value=self.value[kept],
            std=self.std[kept],
            time=None if self.time is None else self.time[kept],
            stations=None if self.stations is None else self.stations[kept],
        )


def average_in_time(table: VisibilityTable, seconds: float) -> VisibilityTable:
    """Weighted means on each baseline of spans of at most `seconds`, the same spans on all baselines.

    A span starts at the first time that the one before does not reach; its rows get one time, their mean. Rows that see
    a baseline from its other end are turned first, as in cells.
    """
    if table.time is None or table.stations is None:
        raise ValueError(
            f"{table.name} has no times and stations, which closures and averages in time need: read a csv with them, "
            "or UVFITS"
        )
    if not seconds > 0:
        raise ValueError(f"visibilities are averaged over a positive number of seconds, got {seconds}")
    times, row = np.unique(table.time, return_inverse=True)
    span, start = np.zeros(len(times), np.int64), times[0]
    for index in range(1, len(times)):
        new = times[index] - start >= seconds / 3600
        start = times[index] if new else start
        span[index] = span[index - 1] + new
    middle = np.bincount(span, times) / np.bincount(span)
    table = _one_way(table, table.stations)
    cell = np.stack([span[row], _pairs(table)], 1)
    return _averaged(table, cell, middle[span][row], f"spans of {seconds:g} s")


def average_in_cells(table: VisibilityTable, width: float) -> VisibilityTable:
    """Weighted means in square cells of `width` wavelengths, on each baseline where stations are known; times are lost.

    Where they are not, V(-u, -v) = V(u, v)* is used to bring all to one half of the plane first.
    """
    if not width > 0:
        raise ValueError(f"cells must have a positive width in wavelengths, got {width}")
    if table.stations is None:
        table = _turned(table, (table.v < 0) | ((table.v == 0) & (table.u < 0)))
    else:
        table = _one_way(table, table.stations)
    column, row = (np.floor(axis / width).astype(np.int64) for axis in (table.u, table.v))
    return _averaged(table, np.stack([column, row, _pairs(table)], 1), None, f"cells of {width:.4g} wavelengths")


def _pairs(table: VisibilityTable) -> NDArray[np.int64]:
    """[K] a number for each baseline, zero where stations are not known."""
    if table.stations is None:
        return np.zeros(len(table), np.int64)
    return np.unique(table.stations, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _one_way(table: VisibilityTable, stations: NDArray[np.str_]) -> VisibilityTable:
    """The same with the two stations of each baseline in the order of its first row, as files may have both orders."""
    _, first, pair = np.unique(np.sort(stations, 1), axis=0, return_index=True, return_inverse=True)
    return _turned(table, (stations != stations[first][pair.reshape(-1)]).any(1))


def _turned(table: VisibilityTable, turned: NDArray[np.bool_]) -> VisibilityTable:
    """The same with the rows `turned` [K] seen from the other end of their baseline: V(-u, -v) = V(u, v)*."""
    sign = np.where(turned, -1.0, 1.0)
    return replace(
        table,
        u=sign * table.u,
        v=sign * table.v,
        value=np.where(turned, table.value.conj(), table.value),
        stations=None if table.stations is None else np.where(turned[:, None], table.stations[:, ::-1], table.stations),
    )


def _averaged(
    table: VisibilityTable, cell: NDArray[np.int64], time: NDArray[np.float64] | None, over: str
) -> VisibilityTable:
    """Weighted means `over` rows of one `cell` [K, any], which have one `time` [K] if they have any."""
    _, first, group = np.unique(cell, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    weight = table.std**-2
    total = np.bincount(group, weight).astype(np.float64)
    if len(total) < len(table):
        _log.info("%s: %d visibilities are averaged to %d, in %s", table.name, len(table), len(total), over)

    def mean(column: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(group, weight * column) / total

    return replace(
        table,
        u=mean(table.u),
        v=mean(table.v),
        value=mean(table.value.real) + 1j * mean(table.value.imag),
        std=1 / np.sqrt(total),
        time=None if time is None else time[first],
        stations=None if table.stations is None else table.stations[first],
    )
