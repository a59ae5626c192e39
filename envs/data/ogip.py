r"""X-ray spectra and responses of a telescope in the OGIP formats: PHA (or PI), ARF and RMF, read by astropy.

    PHA   counts of every detector channel, exposure, scale of the region; grouping and quality (OGIP/92-007)
    ARF   effective area A [cm^2] in bins of photon energy
    RMF   R[j, c], the probability that a photon of energy bin j is detected in channel c, in compressed rows, and
          EBOUNDS, the nominal energies of the channels (CAL/GEN/92-002)

A row of R may sum to less than one where the detector's efficiency is part of it. Files are told apart by their
extensions and HDUCLAS keywords; whatever cannot be right is refused with the file and the row, counted from 1 as in
the FITS table. Units are those of the columns' TUNIT: energies of keV and areas of cm^2 where it says anything.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.data.ogip_table import column_names, numbers, read_table, refuse, word

__all__ = [
    "CountSpectrum",
    "EffectiveArea",
    "Redistribution",
    "check_same_energies",
    "read_arf",
    "read_pha",
    "read_rmf",
]

Array = NDArray[np.float64]
MOST = 1.1  # that a row of probabilities may sum to, with the roundings of real files
ROUNDED = 0.01  # relative difference of errors from Poisson's that is rounding
SAME = 1e-5  # relative difference between energies of two files that is rounding of float32

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountSpectrum:
    """Counts of every channel of an exposure."""

    path: Path
    """Where it was read."""
    channel: NDArray[np.int64]
    """[C] numbers of the channels, one after another."""
    counts: Array
    """[C] counts."""
    exposure: float
    """Exposure time, s."""
    area_scale: float
    """AREASCAL: by which the effective area is multiplied; 1 if it is not given."""
    region: float | None
    """BACKSCAL: size of the region that was counted, in a unit of its own; None if it is not given."""
    good: NDArray[np.bool_]
    """[C] whether QUALITY is 0, or all if there is none."""
    group: NDArray[np.int64]
    """[C] number of the group that a channel belongs to, 0, 1, ...; of each its own where the file has no GROUPING."""
    named: dict[str, str]
    """Files that the header names, of "RESPFILE", "ANCRFILE" and "BACKFILE"."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EffectiveArea:
    """What a telescope and its detector collect."""

    path: Path
    """Where it was read."""
    energy: Array
    """[E, 2] low and high edge of the energy bins, keV."""
    area: Array
    """[E] cm^2."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Redistribution:
    """Which channels photons of an energy are detected in."""

    path: Path
    """Where it was read."""
    energy: Array
    """[E, 2] low and high edge of the energy bins, keV."""
    matrix: Array
    """[E, C] probability of channel c for a photon of bin j; in cm^2 if `includes_area`."""
    first_channel: int
    """Number of the first channel."""
    channel_energy: Array
    """[C, 2] nominal energies of the channels, keV."""
    includes_area: bool
    """Whether the effective area is part of `matrix` (HDUCLAS3 = FULL)."""


def read_pha(path: Path) -> CountSpectrum:
    """The spectrum in a PHA or PI file.

    Raises:
        MissingDataError: astropy is not installed, or there is no such file.
        ValueError: it is no spectrum of counts, or a value in it cannot be.
    """
    table, header, primary = read_table(path, ("SPECTRUM",), "HDUCLAS1", "SPECTRUM", ("CHANNEL", "COUNTS"))
    if "SPEC_NUM" in column_names(table) or "TYPE:II" in (word(header, "HDUCLAS3"), word(header, "HDUCLAS4")):
        raise ValueError(f"{path} is a PHA file of type II, of several spectra; extract one to a file of type I")
    counts = numbers(path, table, "COUNTS")
    refuse(path, "COUNTS must be whole numbers of 0 and more", counts, (counts < 0) | (counts != np.round(counts)))
    channel = numbers(path, table, "CHANNEL").astype(np.int64)
    refuse(path, "CHANNEL must go up by 1 from row to row", channel, np.diff(channel, prepend=channel[0] - 1) != 1)
    exposure = header.get("EXPOSURE", primary.get("EXPOSURE"))
    if not isinstance(exposure, int | float) or not (exposure > 0 and math.isfinite(exposure)):
        raise ValueError(f"{path}: EXPOSURE in SPECTRUM or the first header must be a time above 0 s, got {exposure}")
    if word(header, "HDUCLAS2") == "NET":
        raise ValueError(f"{path}: the background must not be subtracted, counts without it are not Poisson; got NET")
    if word(header, "CORRFILE") not in ("", "NONE") and header.get("CORRSCAL") != 0:
        raise ValueError(f"{path}: CORRFILE must be none, no such correction is made, got {header['CORRFILE']}")
    # 1 begins a group, -1 goes on with it, 0 is a channel by itself.
    grouping = _every_channel(path, table, header, "GROUPING")
    orphan = (grouping == -1) & (np.arange(len(grouping)) == 0)
    refuse(path, "GROUPING must be 1, -1 or 0", grouping, ~np.isin(grouping, (-1, 0, 1)))
    refuse(path, "GROUPING of the first channel must not go on with a group", grouping, orphan)
    if header.get("POISSERR") is not True:
        _check_poisson(path, counts, _every_channel(path, table, header, "STAT_ERR"))
    error = _every_channel(path, table, header, "SYS_ERR")
    if error.any():
        _log.warning("%s: SYS_ERR of up to %g is left out: counts are taken for Poisson", path, error.max())
    return CountSpectrum(
        path=path,
        channel=channel,
        counts=counts,
        exposure=float(exposure),
        area_scale=_scale(path, table, header, "AREASCAL") or 1.0,
        region=_scale(path, table, header, "BACKSCAL"),
        good=_every_channel(path, table, header, "QUALITY") == 0,
        group=np.maximum(np.cumsum(grouping != -1) - 1, 0),
        named={
            key: str(header[key]).strip()
            for key in ("RESPFILE", "ANCRFILE", "BACKFILE")
            if word(header, key) not in ("", "NONE")
        },
    )


def read_arf(path: Path) -> EffectiveArea:
    """The effective area in an ARF file.

    Raises:
        MissingDataError: astropy is not installed, or there is no such file.
        ValueError: it is no ARF, or a value in it cannot be.
    """
    table, _, _ = read_table(path, ("SPECRESP",), "HDUCLAS2", "SPECRESP", ("ENERG_LO", "ENERG_HI", "SPECRESP"))
    area = numbers(path, table, "SPECRESP")
    refuse(path, "SPECRESP must be 0 cm^2 or more", area, area < 0)
    energy, order = _energies(path, table)
    return EffectiveArea(path=path, energy=energy, area=area[order])


def read_rmf(path: Path) -> Redistribution:
    """The redistribution matrix in an RMF file, whatever way its rows are stored.

    Raises:
        MissingDataError: astropy is not installed, or there is no such file.
        ValueError: it is no RMF, or a value in it cannot be.
    """
    columns = ("ENERG_LO", "ENERG_HI", "N_GRP", "F_CHAN", "N_CHAN", "MATRIX")
    table, header, _ = read_table(path, ("MATRIX", "SPECRESP MATRIX"), "HDUCLAS2", "RSP_MATRIX", columns)
    bounds, _, _ = read_table(path, ("EBOUNDS",), "HDUCLAS2", "EBOUNDS", ("E_MIN", "E_MAX"))
    first = int(header.get(f"TLMIN{column_names(table).index('F_CHAN') + 1}", 1))
    edges = _channel_energies(path, bounds, first)
    groups = numbers(path, table, "N_GRP").astype(np.int64)
    refuse(path, "N_GRP must be 0 or more", groups, groups < 0)
    matrix = np.zeros((len(table), len(edges)))
    for row in range(len(table)):
        starts, lengths, values = (np.ravel(table[name][row]) for name in ("F_CHAN", "N_CHAN", "MATRIX"))
        count, taken = groups[row], 0
        if len(starts) < count or len(lengths) < count:
            raise ValueError(f"{path}: row {row + 1} of MATRIX has N_GRP = {count}, but {len(starts)} F_CHAN")
        for start, length in zip(starts[:count].astype(int) - first, lengths[:count].astype(int), strict=True):
            part = values[taken : taken + length]
            if start < 0 or length < 0 or start + length > len(edges) or len(part) < length:
                raise ValueError(
                    f"{path}: row {row + 1} of MATRIX needs {length} channels from {start + first} on and as many "
                    f"values, but there are {len(edges)} channels from {first} on and {len(part)} values"
                )
            matrix[row, start : start + length] += part
            taken += length
    wrong = np.asarray(~np.isfinite(matrix) | (matrix < 0))
    refuse(path, "MATRIX must be finite and 0 or more", np.where(wrong, matrix, 0).sum(1), np.asarray(wrong.any(1)))
    includes_area = word(header, "HDUCLAS3") == "FULL"
    total = matrix.sum(1)
    expected = "a row of MATRIX is of probabilities and sums to 1 or less, or HDUCLAS3 is FULL and the area is in it"
    refuse(path, expected, total, (total > MOST) & (not includes_area))
    energy, order = _energies(path, table)
    return Redistribution(
        path=path,
        energy=energy,
        matrix=matrix[order],
        first_channel=first,
        channel_energy=edges,
        includes_area=includes_area,
    )


def check_same_energies(area: EffectiveArea, redistribution: Redistribution) -> None:
    """ValueError, with the first row that differs, if an ARF and an RMF are on different energies."""
    ours, theirs = area.energy, redistribution.energy
    where = f"{area.path} and {redistribution.path} must be on the same energies"
    if len(ours) != len(theirs):
        raise ValueError(f"{where}, got {len(ours)} bins and {len(theirs)}")
    differs = np.abs(ours - theirs).max(1) > SAME * theirs.max(1)
    if differs.any():
        row = int(differs.argmax())
        spans = [f"{low:g} to {high:g} keV" for low, high in (ours[row], theirs[row])]
        raise ValueError(f"{where}, got {spans[0]} and {spans[1]} in row {row + 1} by energy")


def _check_poisson(path: Path, counts: Array, error: Array) -> None:
    """ValueError if errors are given that are neither sqrt(N) nor 1 + sqrt(N + 0.75) (Gehrels 1986, ApJ 303, 336).

    Programs write these for Poisson's; in channels without counts they differ, and nothing is checked.
    """
    forms = (np.sqrt(counts), 1 + np.sqrt(counts + 0.75))
    wrong = min(((np.abs(error - form) > ROUNDED * form) & (counts > 0) for form in forms), key=np.sum)
    expected = "POISSERR is not T, so STAT_ERR must be an error of Poisson's, the root of COUNTS or Gehrels'"
    refuse(path, expected, error, wrong & error.any())


def _scale(path: Path, table: Any, header: Any, name: str) -> float | None:  # noqa: ANN401 - a table of astropy
    """A number above 0, from the keyword or from a column that has the same one in all channels; None without both."""
    value = header.get(name)
    if name in column_names(table):
        column = numbers(path, table, name)
        refuse(path, f"{name} must be {column[0]:g} in all channels as in the first", column, column != column[0])
        value = float(column[0])
    if value is None:
        return None
    if not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{path}: {name} must be a number above 0, got {value}")
    return float(value)


def _every_channel(path: Path, table: Any, header: Any, name: str) -> Array:  # noqa: ANN401 - a table of astropy
    """A number of every channel, from the column or from the keyword that stands for one; 0 without both."""
    if name in column_names(table):
        return numbers(path, table, name)
    value = header.get(name, 0)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{path}: {name} must be a number, got {value}")
    return np.full(len(table), float(value))


def _channel_energies(path: Path, table: Any, first: int) -> Array:  # noqa: ANN401 - a table of astropy
    """[C, 2] keV of the channels from number `first` on, which EBOUNDS may have in any order."""
    edges = np.stack([numbers(path, table, name) for name in ("E_MIN", "E_MAX")], 1)
    wide = (edges[:, 0] >= 0) & (edges[:, 0] < edges[:, 1])
    refuse(path, "E_MIN of EBOUNDS must be 0 keV or more, and below E_MAX", edges[:, 0], ~wide)
    last = first + len(edges) - 1
    channel = numbers(path, table, "CHANNEL") if "CHANNEL" in column_names(table) else np.arange(first, last + 1)
    order = channel.argsort(kind="stable")
    if np.array_equal(channel[order], np.arange(first, last + 1)):
        edges = edges[order]
    else:  # files of the archives have zeros there, or numbers that ran over
        expected = f"each channel from {first} to {last} once"
        _log.warning("%s: CHANNEL of EBOUNDS is not %s, so its rows are taken in order", path, expected)
    low = edges[:, 0]
    turns = np.diff(low) * (low[-1] - low[0]) <= 0  # channels of a grating may go down in energy
    if turns.any():
        index = int(turns.argmax())
        raise ValueError(
            f"{path}: energies of EBOUNDS must go up, or down, from the first channel to the last, got E_MIN of "
            f"{low[index]:g} and {low[index + 1]:g} keV in channels {first + index} and {first + index + 1}"
        )
    return edges


def _energies(path: Path, table: Any) -> tuple[Array, slice]:  # noqa: ANN401 - a table of astropy
    """[E, 2] keV, each bin beginning where the one before ends, and the order of rows in which it does.

    Gratings have rows that go down in energy.
    """
    energy = np.stack([numbers(path, table, name) for name in ("ENERG_LO", "ENERG_HI")], 1)
    low, high = energy[:, 0], energy[:, 1]
    refuse(path, "ENERG_LO must be 0 keV or more, and below ENERG_HI", low, (low < 0) | (low >= high))
    down = low[-1] < low[0]
    expected = "ENERG_HI must be ENERG_LO of the row before" if down else "ENERG_LO must be ENERG_HI of the row before"
    ours, before = (high[1:], low[:-1]) if down else (low[1:], high[:-1])
    gap = np.abs(ours - before) > SAME * np.maximum(ours, before)
    refuse(path, f"{expected}, in keV", high if down else low, np.concatenate([[False], gap]))
    order = slice(None, None, -1 if down else 1)
    return energy[order], order
