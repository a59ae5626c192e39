"""Visibilities in UVFITS: random groups (AIPS Memo 117).

u and v are in seconds, times the frequency of each channel; Stokes I, or half the sum of the parallel hands, or the one
hand there is. One source, one set of frequencies, one subarray. u and v run from the second station to the first, and
are turned here.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.data.location import MissingDataError
from envs.data.visibility_rows import Rows

__all__ = ["read_uvfits"]

_log = logging.getLogger(__name__)

HANDS = {-1: "RR", -2: "LL", -5: "XX", -6: "YY"}
"""Parallel hands by their codes."""
CODES = ((1,), (-1, -2), (-5, -6), *((hand,) for hand in HANDS))
"""What Stokes I is the mean of, the best first: itself, two hands, or one, if the source is not polarised."""
LOWEST = 1e6  # Hz: what is below is no radio frequency, but one in MHz or GHz


def read_uvfits(path: Path) -> Rows:
    """The visibilities of the file at `path`, flagged ones too.

    Raises:
        MissingDataError: astropy is not installed.
        ValueError: what is not UVFITS of one source in Jy and Hz with the axes and parameters that it must have.
    """
    header, groups, antennas, frequencies = _opened(path)
    data = np.asarray(groups.data, np.float64)
    u, v, date = (_parameter(path, groups, name) for name in ("UU", "VV", "DATE"))
    ends, subarray = _ends(path, groups)
    for name, what in (("SOURCE", "source"), ("FREQSEL", "set of frequencies")):
        if name in groups.parnames and len(chosen := np.unique(groups.par(name))) > 1:
            first = int((groups.par(name) != groups.par(name)[0]).argmax())
            raise ValueError(
                f"{path}, group {first + 1}: all groups must be of one {what}, got {name} {chosen.tolist()}: split it"
            )
    unit = str(header.get("BUNIT", "JY")).strip().upper()
    if unit != "JY":
        raise ValueError(f"{path}: visibilities must be in Jy, BUNIT says {header['BUNIT']!r}")
    if not np.nanmax(np.abs(np.concatenate([u, v]))) < 1:
        raise ValueError(f"{path}: UU and VV must be in seconds of light travel, got up to {np.abs(u).max():.4g}")
    names = {axis: str(header.get(f"CTYPE{axis}", "")).strip().upper() for axis in range(2, header["NAXIS"] + 1)}
    for wanted in ("COMPLEX", "STOKES", "FREQ"):
        if wanted not in names.values():
            raise ValueError(f"{path} has no axis {wanted}, got {', '.join(filter(None, names.values()))}")
    place = {name: data.ndim + 1 - axis for axis, name in names.items()}  # the axes of numpy run the other way
    channels = [place["IF"], place["FREQ"]] if "IF" in place else [place["FREQ"]]
    order = [0, *channels, place["STOKES"], place["COMPLEX"]]
    rest = [axis for axis in range(data.ndim) if axis not in order]
    if any(data.shape[axis] != 1 for axis in rest) or data.shape[place["COMPLEX"]] != 3:
        raise ValueError(f"{path}: expected real part, imaginary part and weight of one pointing, got {data.shape}")
    shape = [data.shape[axis] for axis in order]
    data = data.transpose(*order, *rest).reshape(shape[0], -1, *shape[-2:])  # [groups, channels, Stokes, 3]
    group, stations = np.arange(1, len(u) + 1), _names(path, antennas, ends, subarray)
    alone = ends[:, 0] == ends[:, 1]
    if alone.any():
        _log.info("%s: %d of %d groups are of a station with itself, and are left out", path, alone.sum(), len(alone))
        if alone.all():
            raise ValueError(f"{path}: every group is of a station with itself, none of a baseline")
        u, v, date, group, stations, data = (each[~alone] for each in (u, v, date, group, stations, data))
    stokes = _axis(path, header, names, "STOKES", shape[-2]).round().astype(int)
    value, weight, remark = _total_intensity(path, stokes, data)
    frequency = _axis(path, header, names, "FREQ", data.shape[1] if len(channels) == 1 else shape[2])
    bands = shape[1] if len(channels) == 2 else 1
    frequency = (_offsets(path, groups, frequencies, bands)[:, None] + frequency).reshape(-1)
    if not frequency.min() > LOWEST:
        raise ValueError(f"{path}: FREQ must be in Hz, above {LOWEST:.0e}, got {frequency.min():g}")
    hours = (date - (np.floor(date.min() - 0.5) + 0.5)) * 24
    count = data.shape[1]
    return Rows(
        places=[f"group {row}" for row in group for _ in range(count)],
        u=-np.outer(u, frequency).ravel(),
        v=-np.outer(v, frequency).ravel(),
        value=value.ravel(),
        weight=weight.ravel(),
        time=np.repeat(hours, count),
        stations=np.repeat(stations, count, 0),
        remark=remark,
    )


def _opened(path: Path) -> tuple[Any, Any, list[Any], Any]:
    """The header, the random groups, the tables of stations, and that of frequencies or None."""
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingDataError("UVFITS files are read by astropy: pip install 'rtb[astronomy]' or astropy") from None
    try:
        with fits.open(path, memmap=False) as file:
            header, groups = file[0].header, file[0].data if isinstance(file[0], fits.GroupsHDU) else None
            antennas = [unit.data for unit in file[1:] if unit.name == "AIPS AN"]  # one a subarray
            frequencies = next((unit.data for unit in file[1:] if unit.name == "AIPS FQ"), None)
    except (OSError, EOFError, zlib.error, TypeError, ValueError) as error:  # of a file that ends early it says any
        raise ValueError(f"cannot read {path} as FITS, is all of it there? {error}") from None
    if groups is None:
        raise ValueError(f"{path} is FITS, but not UVFITS: its first unit must hold random groups")
    return header, groups, antennas, frequencies


def _parameter(path: Path, groups: Any, name: str) -> NDArray[np.float64]:  # noqa: ANN401
    """Values of the group parameter whose name starts with `name`; those of one name are added, as day and fraction.

    The second of two may have an underscore before it, as names of columns must differ for some programs.
    """
    rows = [index for index, each in enumerate(groups.parnames) if each.lstrip("_").startswith(name)]
    if not rows:
        raise ValueError(f"{path} has no group parameter {name}, got {', '.join(dict.fromkeys(groups.parnames))}")
    return np.sum([np.asarray(groups.par(index), np.float64) for index in rows], 0)


def _ends(path: Path, groups: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # noqa: ANN401
    """Numbers of the two stations of each group [G, 2], and of its subarray [G].

    A baseline is 256 i + j, or with a station beyond 255 2048 i + j + 65536, and 0.01 more for each subarray after the
    first; or there are parameters for the two stations (AIPS Memo 117, 2017).
    """
    if {"ANTENNA1", "ANTENNA2"} <= set(groups.parnames):
        ends = np.stack([_parameter(path, groups, name) for name in ("ANTENNA1", "ANTENNA2")], 1)
        own = _parameter(path, groups, "SUBARRAY") if "SUBARRAY" in groups.parnames else np.ones(len(ends))
        return ends.round().astype(np.int64), own.round().astype(np.int64)
    baseline = _parameter(path, groups, "BASELINE")
    whole = np.floor(baseline + 1e-3).astype(np.int64)  # one that is scaled may come out just below
    subarray = np.round(100 * (baseline - whole)).astype(np.int64) + 1
    few = np.stack([whole // 256, whole % 256], 1)
    many = np.stack([(whole - 65536) // 2048, (whole - 65536) % 2048], 1)
    return np.where((whole > 65536)[:, None], many, few), subarray


def _names(
    path: Path,
    antennas: Sequence[Any],
    ends: NDArray[np.int64],
    subarray: NDArray[np.int64],
) -> NDArray[np.str_]:
    """[G, 2] names of the stations `ends` by the tables `antennas`, or numbers where names do not tell them apart.

    Times of several subarrays are put together, so a number must stand for one station in all of them.
    """
    known: dict[int, str] = {}
    for table in antennas:
        columns = (_column(path, "AIPS AN", table, name).tolist() for name in ("NOSTA", "ANNAME"))
        for number, name in zip(*columns, strict=True):
            if known.setdefault(number, name.strip()) != name.strip():
                raise ValueError(
                    f"{path}: station {number} is {known[number]} in one table AIPS AN and {name.strip()} in another: "
                    "all groups must be of one subarray, split it"
                )
    if len(used := np.unique(subarray)) > max(1, len(antennas)):
        first = int((subarray != subarray[0]).argmax())
        raise ValueError(
            f"{path}, group {first + 1}: all groups must be of one subarray, got {used.tolist()} and {len(antennas)} "
            "tables AIPS AN: split it"
        )
    numbers, where = np.unique(ends, return_inverse=True)
    called = [known.get(number, "") for number in numbers.tolist()]
    if "" in called or len(set(called)) < len(called):
        if known:
            _log.info("%s: AIPS AN has no name for some stations or one for several: all go by their numbers", path)
        called = [str(number) for number in numbers]
    return np.array(called)[where.reshape(ends.shape)]


def _axis(path: Path, header: Any, names: dict[int, str], name: str, count: int) -> NDArray[np.float64]:  # noqa: ANN401
    """[count] coordinates along the axis called `name`."""
    axis = next(number for number, each in names.items() if each == name)
    if f"CRVAL{axis}" not in header:
        raise ValueError(f"{path}: the axis {name} must have its value in CRVAL{axis}, which is not in the header")
    step = np.arange(1, count + 1) - header.get(f"CRPIX{axis}", 1.0)
    return np.asarray(header[f"CRVAL{axis}"] + step * header.get(f"CDELT{axis}", 1.0), np.float64)


def _offsets(path: Path, groups: Any, table: Any, bands: int) -> NDArray[np.float64]:  # noqa: ANN401
    """[bands] that the set of frequencies FREQSEL, which all groups have, adds to the frequencies of the header."""
    offsets = np.zeros((1, 1))
    if table is not None:
        offsets = _column(path, "AIPS FQ", table, "IF FREQ").reshape(len(table), -1)
        if "FREQSEL" in groups.parnames:
            known, wanted = _column(path, "AIPS FQ", table, "FRQSEL").ravel(), groups.par("FREQSEL")[0]
            if wanted not in known:
                raise ValueError(f"{path}: the groups are of FREQSEL {wanted:g}, AIPS FQ has FRQSEL {known.tolist()}")
            offsets = offsets[known == wanted]
    if offsets.shape[1] != bands:
        raise ValueError(f"{path}: AIPS FQ must have IF FREQ of {bands} bands, one an IF, got {offsets.shape[1]}")
    if len(offsets) > 1:
        raise ValueError(
            f"{path}: AIPS FQ must have one row for the groups, or a parameter FREQSEL tell which, got {len(offsets)}"
        )
    return np.asarray(offsets[0], np.float64)


def _column(path: Path, kind: str, table: Any, name: str) -> NDArray[Any]:  # noqa: ANN401
    if name not in table.names:
        raise ValueError(f"{path}: the table {kind} has no column {name}, got {', '.join(table.names)}")
    return np.asarray(table[name])


def _total_intensity(
    path: Path, stokes: NDArray[np.int64], data: NDArray[np.float64]
) -> tuple[NDArray[np.complex128], NDArray[np.float64], str]:
    """Stokes I and its weight [groups, channels], zero where a part of it is flagged; and a remark on these.

    One hand is Stokes I of a source that is not polarised, with the hand's own variance. It is taken where the other is
    flagged in all groups, not where it is in some: a source that is polarised would change between them.
    """
    codes = stokes.tolist()
    hands = next((pair for pair in CODES if set(pair) <= set(codes)), None)
    if hands is None:
        raise ValueError(f"{path} must hold Stokes I, RR and LL, XX and YY, or one of these; got the codes {codes}")
    parts = data[:, :, [codes.index(code) for code in hands]]
    seen = ~(parts[..., 2] <= 0).all((0, 1))
    if seen.any():
        parts, hands = parts[:, :, seen], tuple(np.array(hands)[seen].tolist())
    if hands[0] in HANDS and len(hands) == 1:
        _log.info("%s has the hand %s alone: it is taken for Stokes I, as of no polarisation", path, HANDS[hands[0]])
    weight = parts[..., 2]
    on: NDArray[np.bool_] = np.all(weight > 0, axis=-1)
    variance = np.where(on[..., None], 1 / np.where(weight > 0, weight, 1.0), 1.0).sum(-1) / len(hands) ** 2
    value = (parts[..., 0] + 1j * parts[..., 1]).mean(-1)
    bad = np.isnan(weight).any(-1)  # neither flagged nor known
    half = (weight > 0).any(-1) & ~on & ~bad
    remark = f" ({half.sum()} of them as one hand is missing)" if half.any() else ""
    return value, np.where(bad, np.nan, np.where(on, 1 / variance, 0.0)), remark
