r"""Files of visibilities: tables of numbers, the Event Horizon Telescope's csv, and UVFITS.

- A table: u, v [lambda], Re V, Im V [Jy], weight [Jy^-2], one visibility a line, between spaces or commas, `#` for
  comments, as made by frank and by CASA scripts. Units in a comment or a header, as u [lambda] or u(m), must be these.
- csv: a header `#time(UTC),T1,T2,U(lambda),V(lambda),Iamp(Jy),Iphase(d),Isigma(Jy)` (EHT 2019-D01-01), with or without
  its `#`, columns in any order.
- UVFITS: random groups (AIPS Memo 117), see `envs.data.uvfits`.

Which one a file is, and whether it is compressed, is known by its content.

Tables are of V = sum I exp(-2 pi i (u l + v m)). csv and UVFITS give u and v as (first station - second station), with
which it is exp(+2 pi i (u l + v m)) (as in the software of the EHT, by which M87 is brighter in the south); their u and
v are turned to the convention of this project, the second station less the first.

A weight w is 1 / variance of the real part and of the imaginary part, each. A weight of zero (in UVFITS zero or less)
marks a flagged row. Such rows are refused unless `flagged="drop"` is asked for: then they are left out, counted and
logged. Copies of rows are kept, and warned of. What is wrong is named with the file and its row.
"""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from envs.data.location import MissingDataError
from envs.data.uvfits import read_uvfits
from envs.data.visibilities import VisibilityTable
from envs.data.visibility_columns import CSV, TABLE, check_comment, check_units, is_header
from envs.data.visibility_rows import Rows, checked

__all__ = ["read_visibilities"]

COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
"""How files that start with these two bytes are opened."""


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
    if _is_fits(path):
        return checked(path, read_uvfits(path), flagged)
    comments, rows = _read_lines(path)
    if not rows:
        raise ValueError(f"{path} has no row of numbers")
    other = "," in rows[0][1] and (rows[0][1].count(",") != len(TABLE) - 1 or any("T1" in text for text in comments))
    return checked(path, (_csv if other else _table)(path, comments, rows), flagged)


def _opener(path: Path) -> Any:  # noqa: ANN401
    """What opens the file, which is known by its first bytes: names say little."""
    with path.open("rb") as file:
        return COMPRESSED.get(file.read(2), open)


def _is_fits(path: Path) -> bool:
    """Whether the file starts as FITS, or is called so."""
    try:
        with _opener(path)(path, "rb") as file:
            if file.read(9) == b"SIMPLE  =":
                return True
    except (OSError, EOFError, zlib.error):  # a compressed file that is not whole, as will be said where it is read
        pass
    return path.suffix.lower() in (".uvfits", ".uvf", ".fits")


def _read_lines(path: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """Comments and headers, and the other lines that are not empty with their number in the file."""
    comments, rows = [], []
    file: IO[str]
    try:
        with _opener(path)(path, "rt", encoding="utf-8-sig") as file:  # a csv may start with a byte order mark
            for number, line in enumerate(file, 1):
                text = line.strip().removesuffix(",")
                if text.startswith("#"):
                    comments.append(text.lstrip("# "))
                elif text:
                    rows.append((number, text))
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    if rows and is_header(rows[0][1]):
        comments.append(rows.pop(0)[1])
    return comments, rows


def _table(path: Path, comments: list[str], rows: list[tuple[int, str]]) -> Rows:
    for text in comments:
        check_comment(path, text)
    separator = "," if "," in rows[0][1] else None
    split = [(number, text.split(separator)) for number, text in rows]
    u, v, real, imaginary, weight = _numbers(path, split, list(TABLE))
    places = [f"line {number}" for number, _ in rows]
    value = (real + 1j * imaginary).astype(np.complex128)
    return Rows(places=places, u=u, v=v, value=value, weight=weight)


def _csv(path: Path, comments: list[str], rows: list[tuple[int, str]]) -> Rows:
    header = next((text for text in reversed(comments) if text.count(",") == rows[0][1].count(",")), "")
    found = [re.fullmatch(r"\s*(\w+)\s*(?:\(([^)]*)\))?\s*", part) for part in header.split(",")]
    units = {each[1]: each[2] or "" for each in found if each}
    missing = [name for name in CSV if name not in units]
    if missing:
        raise ValueError(
            f"{path} must name its columns {', '.join(CSV)} in a header, or have the {len(TABLE)} columns "
            f"{', '.join(TABLE)} and no more, got {rows[0][1].count(',') + 1}; missing: {', '.join(missing)}"
        )
    check_units(path, units, CSV)
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
    return Rows(places=places, u=-u, v=-v, value=value, weight=sigma**-2, time=time, stations=names)


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
