"""Rows of a file of visibilities, and the table of those that are not flagged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.data.visibilities import VisibilityTable

__all__ = ["Rows", "checked"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Visibilities as a file has them, flagged ones too, in the convention and units of `VisibilityTable`."""

    places: Sequence[str]
    """[K] what each row is called in a message."""
    u: NDArray[np.float64]
    """[K] wavelengths."""
    v: NDArray[np.float64]
    """[K] wavelengths."""
    value: NDArray[np.complex128]
    """[K] Jy."""
    weight: NDArray[np.float64]
    """[K] Jy^-2; zero where flagged."""
    time: NDArray[np.float64] | None = None
    """[K] hours, where known."""
    stations: NDArray[np.str_] | None = None
    """[K, 2] names, where known."""
    remark: str = ""
    """What else a message is to say of the flagged rows."""


def checked(path: Path, rows: Rows, flagged: str) -> VisibilityTable:
    """The table of the `rows` of the file at `path` that are not flagged, which flagged="drop" leaves out.

    Raises:
        ValueError: weights that are no weights, numbers that are not finite, a station with itself, or flagged rows.
    """
    places, weight, time, stations = rows.places, rows.weight, rows.time, rows.stations
    columns = {"u": rows.u, "v": rows.v, "Re(V)": rows.value.real, "Im(V)": rows.value.imag}
    columns |= {} if time is None else {"time": time}
    off = weight == 0
    bad = np.isnan(weight) | np.isinf(weight) | (weight < 0)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{path}, {places[row]}: weights must be finite and not negative, got {weight[row]}")
    for name, column in columns.items():
        wrong = ~np.isfinite(column) & ~off
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{path}, {places[row]}: {name} must be finite, got {column[row]}; flag it by weight 0")
    if stations is not None:
        alone = (stations[:, 0] == stations[:, 1]) & ~off
        if alone.any():
            row = int(alone.argmax())
            raise ValueError(
                f"{path}, {places[row]}: a baseline has two stations, got {stations[row, 0]} twice: take it out"
            )
    if off.any():
        found = f"{path}: {off.sum()} of {len(off)} rows are flagged by their weight, the first in "
        found += f"{places[off.argmax()]}{rows.remark}"
        if flagged == "refuse":
            raise ValueError(f"{found}; read them with flagged='drop' to leave them out")
        if off.all():
            raise ValueError(f"{found}: none is left")
        _log.info("%s; they are left out", found)
    on = ~off
    _warn_of_copies(path, rows, on)
    return VisibilityTable(
        name=path.name,
        u=rows.u[on],
        v=rows.v[on],
        value=rows.value[on],
        std=weight[on] ** -0.5,
        time=None if time is None else time[on],
        stations=None if stations is None else stations[on],
        flagged=int(off.sum()),
    )


def _warn_of_copies(path: Path, rows: Rows, on: NDArray[np.bool_]) -> None:
    """Log which of the rows `on` equal others, or their conjugates at (-u, -v): their variance would be halved."""
    u, v, value, weight = (column[on] for column in (rows.u, rows.v, rows.value, rows.weight))
    turned = (v < 0) | ((v == 0) & (u < 0)) | ((v == 0) & (u == 0) & (value.imag < 0))
    sign = np.where(turned, -1.0, 1.0)
    columns = [sign * u, sign * v, value.real, sign * value.imag, weight]
    columns += [] if rows.time is None else [rows.time[on]]
    order = np.lexsort(columns)  # stable: of equal rows the first in the file comes first
    new = np.ones(len(order), bool)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    if new.all():
        return
    original = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    places = [rows.places[index] for index in np.flatnonzero(on).tolist()]
    copies = sorted(zip(order[~new].tolist(), original[~new].tolist(), strict=True))
    first = ", ".join(f"{places[copy]} of {places[source]}" for copy, source in copies[:3])
    _log.warning(
        "%s: %d of %d rows are copies of others, or their conjugates at (-u, -v), so the same data count twice: %s%s",
        *(path, len(copies), len(order), first, ", ..." if len(copies) > 3 else ""),
    )
