"""Tables of OGIP files, read by astropy: found by name or class, and their columns checked.

Names of extensions and columns are of either case. Errors name the file, and the row counted from 1 as in FITS.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.data.location import MissingDataError

__all__ = ["column_names", "numbers", "read_table", "refuse", "word"]

Array = NDArray[np.float64]
KEV, CM2, COUNT = ("keV", ("kev",)), ("cm^2", ("cm2",)), ("counts", ("count", "counts", "ct", "cts"))
UNITS = {"ENERG_LO": KEV, "ENERG_HI": KEV, "E_MIN": KEV, "E_MAX": KEV, "SPECRESP": CM2, "COUNTS": COUNT}
"""Unit of a column, and what TUNIT may say, in small letters and without the signs of a power above 0."""


def read_table(
    path: Path, extensions: tuple[str, ...], keyword: str, expected: str, columns: tuple[str, ...]
) -> tuple[Any, Any, Any]:
    """The one table that has a name of `extensions` or says `expected` for `keyword`, its header, and the file's first.

    `columns` it must have, of either case as all names.
    """
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingDataError("FITS files are read by astropy: pip install 'rtb[astronomy]' or astropy") from None
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}")
    try:
        with fits.open(path, memmap=False) as file:
            names = [unit.name for unit in file]
            primary = file[0].header
            found = [
                (unit.name, unit.header, unit.data)
                for unit in file[1:]
                if unit.name.upper() in extensions or word(unit.header, keyword) == expected
            ]
    except (OSError, TypeError, ValueError) as error:  # of a file that ends early astropy says the last two
        raise ValueError(f"cannot read {path} as FITS, is all of it there? {error}") from None
    extension = extensions[0]
    if not found:
        raise ValueError(f"{path} must have an extension {extension}, got {', '.join(names)}")
    if len(found) > 1:
        several = ", ".join(name for name, _, _ in found)
        raise ValueError(f"{path} must have one extension {extension}, got {len(found)} of the kind: {several}")
    _, header, table = found[0]
    if getattr(table, "names", None) is None:
        raise ValueError(f"{path}: {extension} must be a table, got {'no data' if table is None else 'an image'}")
    got = word(header, keyword)
    if got not in (expected, ""):
        raise ValueError(f"{path}: {keyword} of {extension} must be {expected}, got {got}")
    missing = [name for name in columns if name not in column_names(table)]
    if missing:
        raise ValueError(
            f"{path}: {extension} must have columns {', '.join(columns)}; {', '.join(missing)} is not among "
            f"{', '.join(table.names)}"
        )
    if not len(table):
        raise ValueError(f"{path}: {extension} has no rows")
    for name in columns:
        unit = str(table.columns[name].unit or "").strip()
        if unit and name in UNITS and re.sub(r"[\s*^()+]", "", unit.lower()) not in UNITS[name][1]:
            raise ValueError(f"{path}: {name} of {extension} must be in {UNITS[name][0]}, TUNIT says {unit}")
    return table, header, primary


def column_names(table: Any) -> list[str]:  # noqa: ANN401 - a table of astropy
    """Columns' names in capitals: FITS does not tell cases apart, nor does astropy where it looks one up."""
    return [name.upper() for name in table.names]


def word(header: Any, key: str) -> str:  # noqa: ANN401 - a header of astropy
    """What a keyword says, in capitals; nothing if it is not there."""
    return str(header.get(key, "")).strip().upper()


def numbers(path: Path, table: Any, name: str) -> Array:  # noqa: ANN401 - a table of astropy
    """A column of one finite number a row, float64."""
    values = np.asarray(table[name])
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} must be one number a row, got {values.dtype} {list(values.shape)}")
    values = values.astype(np.float64)
    refuse(path, f"{name} must be finite", values, ~np.isfinite(values))
    return values


def refuse(path: Path, expected: str, values: NDArray[Any], wrong: NDArray[Any]) -> None:
    """ValueError with the first row that is `wrong`, its value, and how many more there are."""
    if wrong.any():
        row, count = int(wrong.argmax()), int(wrong.sum())
        more = f", and in {count - 1} more" if count > 1 else ""
        raise ValueError(f"{path}: {expected}, got {values[row]:g} in row {row + 1}{more}")
