r"""Files of visibilities: tables of numbers, the Event Horizon Telescope's csv, and UVFITS.

- A table: u, v [lambda], Re V, Im V [Jy], weight [Jy^-2], one visibility a line, `#` for comments, as made by frank
  and by CASA scripts; may be compressed (.gz, .bz2). Units in a comment, as u [lambda] or u(m), must be these.
- csv: a header `#time(UTC),T1,T2,U(lambda),V(lambda),Iamp(Jy),Iphase(d),Isigma(Jy)` (EHT 2019-D01-01), columns in any
  order.
- UVFITS: random groups (AIPS Memo 117): u, v in seconds times the frequency of each channel; Stokes I, or half the sum
  of the parallel hands. One source, one set of frequencies.

Tables are of V = sum I exp(-2 pi i (u l + v m)). csv and UVFITS give u and v as (first station - second station), with
which it is exp(+2 pi i (u l + v m)) (as in the software of the EHT, by which M87 is brighter in the south); their u and
v are turned to the convention of this project, the second station less the first.

A weight w is 1 / variance of the real part and of the imaginary part, each. A weight of zero (in UVFITS zero or less)
marks a flagged row. Such rows are refused unless `flagged="drop"` is asked for: then they are left out, counted and
logged. What is wrong is named with the file and its row.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from envs.data.location import MissingDataError
from envs.data.visibilities import VisibilityTable

__all__ = ["read_visibilities"]

_log = logging.getLogger(__name__)

TABLE = {"u": "lambda", "v": "lambda", "Re(V)": "Jy", "Im(V)": "Jy", "weight": "Jy^-2"}
CSV = {"time": "UTC", "T1": "", "T2": "", "U": "lambda", "V": "lambda", "Iamp": "Jy", "Iphase": "d", "Isigma": "Jy"}
HANDS = ((-1, -2), (-5, -6))  # codes of RR and LL, XX and YY
NAMES = {
    "u": r"\bu",
    "v": r"\bv",
    "Re(V)": r"\b(?:Re|Real)(?:\s*\(V\))?",
    "Im(V)": r"\b(?:Im|Imag)(?:\s*\(V\))?",
    "weight": r"\bweights?",
}
"""What columns of a table are called in a comment."""
OTHER_UNITS = re.compile(r"(?<![A-Za-z])(?:[mukµμ]Jy|[kMG](?:lambda|λ))(?![A-Za-z])")  # than those of a table
LOWEST = 1e6  # Hz: what is below is no radio frequency, but one in MHz or GHz
UVFITS = (".uvfits", ".uvf", ".fits")


def read_visibilities(path: str | Path, *, flagged: str = "refuse") -> VisibilityTable:
    """The visibilities in a file: see the module. `flagged` is refuse or drop.

    Raises:
        MissingDataError: there is no such file, or astropy is not installed, which reads UVFITS.
        ValueError: wrong units, missing columns, numbers that are not finite, negative weights, or flagged rows.
    """
    path = Path(path)
    if flagged not in ("refuse", "drop"):
        raise ValueError(f"flagged must be refuse or drop, got {flagged!r}")
    if not path.is_file():
        raise MissingDataError(f"no file of visibilities at {path}")
    if path.suffix.lower() in UVFITS:
        return _read_uvfits(path, flagged)
    comments, rows = _read_lines(path)
    if not rows:
        raise ValueError(f"{path} has no row of numbers")
    return (_csv if "," in rows[0][1] else _table)(path, comments, rows, flagged)


def _read_lines(path: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """Comments, and the other lines that are not empty with their number in the file."""
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    comments, rows = [], []
    file: IO[str]
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text.startswith("#"):
                    comments.append(text.lstrip("# "))
                elif text:
                    rows.append((number, text))
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    return comments, rows


def _table(path: Path, comments: list[str], rows: list[tuple[int, str]], flagged: str) -> VisibilityTable:
    for text in comments:
        units = re.findall(r"\[([^\]]*)\]", text)
        if len(units) == len(TABLE):
            _check_units(path, dict(zip(TABLE, units, strict=True)), TABLE)
        found = {name: re.search(pattern + r"\s*[\[(](?!V\))([^\])]*)", text) for name, pattern in NAMES.items()}
        said = {name: match[1] for name, match in found.items() if match}
        if {"u", "v"} <= set(said):  # else it is a comment about something else
            _check_units(path, said, {name: TABLE[name] for name in said})
        other = OTHER_UNITS.search(text)
        if other is not None:
            raise ValueError(
                f"{path}: columns must be in {', '.join(TABLE.values())}; a comment speaks of {other[0]}: convert them "
                "first, or take it out"
            )
    u, v, real, imaginary, weight = _numbers(path, [(number, text.split()) for number, text in rows], list(TABLE))
    places = [f"line {number}" for number, _ in rows]
    value = (real + 1j * imaginary).astype(np.complex128)
    return _checked(path, places, u, v, value, weight, flagged)


def _csv(path: Path, comments: list[str], rows: list[tuple[int, str]], flagged: str) -> VisibilityTable:
    header = next((text for text in reversed(comments) if text.count(",") == rows[0][1].count(",")), "")
    found = [re.fullmatch(r"\s*(\w+)\s*(?:\(([^)]*)\))?\s*", part) for part in header.split(",")]
    units = {each[1]: each[2] or "" for each in found if each}
    missing = [name for name in CSV if name not in units]
    if missing:
        raise ValueError(f"{path} must name its columns {', '.join(CSV)} in a comment; missing: {', '.join(missing)}")
    _check_units(path, units, CSV)
    split = [(number, [part.strip() for part in text.split(",")]) for number, text in rows]
    order = [each[1] if each else "" for each in found]
    for number, parts in split:
        if len(parts) != len(order):
            raise ValueError(f"{path}, line {number}: expected {len(order)} columns, got {len(parts)}")
    names = np.array([[parts[order.index(name)] for name in ("T1", "T2")] for _, parts in split])
    wanted = [name for name in CSV if name not in ("T1", "T2")]
    picked = [(number, [parts[order.index(name)] for name in wanted]) for number, parts in split]
    time, u, v, amplitude, phase, sigma = _numbers(path, picked, wanted)
    places = [f"line {number}" for number, _ in rows]
    for name, column, right in (
        ("Isigma must be positive", sigma, sigma > 0),
        ("Iamp must be finite and 0 or more", amplitude, np.isfinite(amplitude) & (amplitude >= 0)),
        ("Iphase must be finite", phase, np.isfinite(phase)),
    ):
        if not right.all():
            raise ValueError(f"{path}, {places[right.argmin()]}: {name}, got {column[right.argmin()]}")
    value = (amplitude * np.exp(1j * np.deg2rad(phase))).astype(np.complex128)
    return _checked(path, places, -u, -v, value, sigma**-2, flagged, time, names)


def _check_units(path: Path, units: dict[str, str], expected: dict[str, str]) -> None:
    for name, unit in expected.items():
        if units[name].strip() != unit:
            raise ValueError(f"{path}: {name} must be in [{unit}], the file says [{units[name]}]; convert it first")


def _numbers(path: Path, rows: list[tuple[int, list[str]]], names: list[str]) -> Sequence[NDArray[np.float64]]:
    """A column for each of `names`."""
    values = np.empty((len(rows), len(names)))
    for row, (number, parts) in enumerate(rows):
        if len(parts) != len(names):
            raise ValueError(
                f"{path}, line {number}: expected {len(names)} columns ({', '.join(names)}), got {len(parts)}"
            )
        try:
            values[row] = [float(part) for part in parts]
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return list(values.T.copy())


def _checked(
    path: Path,
    places: Sequence[str],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    value: NDArray[np.complex128],
    weight: NDArray[np.float64],
    flagged: str,
    time: NDArray[np.float64] | None = None,
    stations: NDArray[np.str_] | None = None,
) -> VisibilityTable:
    """The table without flagged rows, of which `weight` is zero; each row is called by its name of `places`."""
    columns = {"u": u, "v": v, "Re(V)": value.real, "Im(V)": value.imag}
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
                f"{path}, {places[row]}: a baseline has two stations, got {stations[row, 0]} twice: flag it by weight 0"
            )
    if off.any():
        found = (
            f"{path}: {off.sum()} of {len(off)} rows are flagged by their weight, the first in {places[off.argmax()]}"
        )
        if flagged == "refuse":
            raise ValueError(f"{found}; read them with flagged='drop' to leave them out")
        if off.all():
            raise ValueError(f"{found}: none is left")
        _log.info("%s; they are left out", found)
    on = ~off
    return VisibilityTable(
        name=path.name,
        u=u[on],
        v=v[on],
        value=value[on],
        std=weight[on] ** -0.5,
        time=None if time is None else time[on],
        stations=None if stations is None else stations[on],
        flagged=int(off.sum()),
    )


def _read_uvfits(path: Path, flagged: str) -> VisibilityTable:
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingDataError("UVFITS files are read by astropy: pip install 'rtb[astronomy]' or astropy") from None
    try:
        with fits.open(path, memmap=False) as file:
            header, groups = file[0].header, file[0].data if isinstance(file[0], fits.GroupsHDU) else None
            extensions = {unit.name: unit.data for unit in file[1:] if unit.name in ("AIPS AN", "AIPS FQ")}
            data = None if groups is None else np.asarray(groups.data, np.float64)
    except (OSError, TypeError, ValueError) as error:  # of a file that ends early astropy says the last two
        raise ValueError(f"cannot read {path} as FITS, is all of it there? {error}") from None
    if groups is None or data is None:
        raise ValueError(f"{path} is FITS, but not UVFITS: its first unit must hold random groups")
    u, v, baseline, date = (_parameter(path, groups, name) for name in ("UU", "VV", "BASELINE", "DATE"))
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
    value, weight = _total_intensity(path, _axis(path, header, names, "STOKES", shape[-2]).round().astype(int), data)
    frequency = _axis(path, header, names, "FREQ", data.shape[1] if len(channels) == 1 else shape[2])
    if len(channels) == 2:
        table = extensions.get("AIPS FQ")
        offset = np.zeros(1) if table is None else np.ravel(table["IF FREQ"][0])
        if len(offset) != shape[1]:
            raise ValueError(f"{path}: AIPS FQ must have IF FREQ of {shape[1]} bands, one an IF, got {len(offset)}")
        frequency = (offset[:, None] + frequency).reshape(-1)
    if not frequency.min() > LOWEST:
        raise ValueError(f"{path}: FREQ must be in Hz, above {LOWEST:.0e}, got {frequency.min():g}")
    antennas = extensions.get("AIPS AN")
    called = {} if antennas is None else dict(zip(antennas["NOSTA"].tolist(), antennas["ANNAME"].tolist(), strict=True))
    ends = np.stack([baseline // 256, baseline % 256], 1).astype(int)
    stations = np.array([[str(called.get(end, end)).strip() for end in pair] for pair in ends.tolist()])
    hours = (date - (np.floor(date.min() - 0.5) + 0.5)) * 24
    count = data.shape[1]
    return _checked(
        path,
        [f"group {row}" for row in range(1, len(u) + 1) for _ in range(count)],
        -np.outer(u, frequency).ravel(),
        -np.outer(v, frequency).ravel(),
        value.ravel(),
        weight.ravel(),
        flagged,
        np.repeat(hours, count),
        np.repeat(stations, count, 0),
    )


def _parameter(path: Path, groups: Any, name: str) -> NDArray[np.float64]:  # noqa: ANN401
    """Values of the group parameter whose name starts with `name`; those of one name are added."""
    rows = [index for index, each in enumerate(groups.parnames) if each.startswith(name)]
    if not rows:
        raise ValueError(f"{path} has no group parameter {name}, got {', '.join(dict.fromkeys(groups.parnames))}")
    return np.sum([np.asarray(groups.par(index), np.float64) for index in rows], 0)


def _axis(path: Path, header: Any, names: dict[int, str], name: str, count: int) -> NDArray[np.float64]:  # noqa: ANN401
    """[count] coordinates along the axis called `name`."""
    axis = next(number for number, each in names.items() if each == name)
    if f"CRVAL{axis}" not in header:
        raise ValueError(f"{path}: the axis {name} must have its value in CRVAL{axis}, which is not in the header")
    step = np.arange(1, count + 1) - header.get(f"CRPIX{axis}", 1.0)
    return np.asarray(header[f"CRVAL{axis}"] + step * header.get(f"CDELT{axis}", 1.0), np.float64)


def _total_intensity(
    path: Path, stokes: NDArray[np.int64], data: NDArray[np.float64]
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Stokes I and its weight [groups, channels], zero where a part of it is flagged."""
    codes = stokes.tolist()
    hands = next((pair for pair in ((1,), *HANDS) if set(pair) <= set(codes)), None)
    if hands is None:
        raise ValueError(f"{path} must hold Stokes I, or RR and LL, or XX and YY; got the codes {codes}")
    parts = data[:, :, [codes.index(code) for code in hands]]
    weight = parts[..., 2]
    on: NDArray[np.bool_] = np.all(weight > 0, axis=-1)
    variance = np.where(on[..., None], 1 / np.where(weight > 0, weight, 1.0), 1.0).sum(-1) / len(hands) ** 2
    value = (parts[..., 0] + 1j * parts[..., 1]).mean(-1)
    bad = np.isnan(weight).any(-1)  # neither flagged nor known
    return value, np.where(bad, np.nan, np.where(on, 1 / variance, 0.0))
