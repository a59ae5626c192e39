"""Columns of text files of visibilities: their names and units, as comments and headers say them.

What is said otherwise (metres, megalambda, mJy, a standard deviation for the weight) is refused, as numbers alone do
not tell. Spellings of one unit are all taken. A comment that names no unit is believed to mean these.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["CSV", "TABLE", "check_comment", "check_units", "is_header"]

TABLE = {"u": "lambda", "v": "lambda", "Re(V)": "Jy", "Im(V)": "Jy", "weight": "Jy^-2"}
CSV = {"time": "UTC", "T1": "", "T2": "", "U": "lambda", "V": "lambda", "Iamp": "Jy", "Iphase": "d", "Isigma": "Jy"}
SPELLINGS = {
    "lambda": ("lambda", "lambdas", "λ", "wavelength", "wavelengths"),
    "Jy": ("jy", "jansky"),
    "Jy^-2": ("jy^-2", "jy-2", "1/jy^2", "1/jy2"),
    "UTC": ("utc", "ut", "h", "hr", "hrs", "hour", "hours"),
    "d": ("d", "deg", "degs", "degree", "degrees", "°"),
}
"""Of each unit, in lower case, without spaces and brackets, with ^ for a power."""
NAMES = {
    "u": r"uu?",
    "v": r"vv?",
    "Re(V)": r"Re(?:al)?(?:\s*\(V\))?",
    "Im(V)": r"Im(?:ag)?(?:\s*\(V\))?",
    "weight": r"(?:weight|wgt|wt|w)s?",
}
"""What columns of a table are called."""
OTHER_COLUMNS = re.compile(
    r"(?:sig(?:ma)?|std(?:dev)?|err(?:or)?|rms|noise|var(?:iance)?|amp(?:l(?:itude)?)?|phase)s?(?![a-z])", re.IGNORECASE
)
ABBREVIATED = r"(?:[kcm]?m|[nuµμ]?s)(?![A-Za-z0-9])"  # of lengths and times, which are words and initials elsewhere
OTHER_UNITS = (
    re.compile(r"(?i:(?<![a-z])(?:(?:[kMG]|(?:kilo|mega|giga)[ -]?)(?:lambdas?|λ|wavelengths?))(?![a-z]))"),
    re.compile(r"(?i:(?<![a-z])(?:[mukµμn]|milli[ -]?|micro[ -]?|kilo[ -]?)(?:Jy|Janskys?)(?![a-z]))"),
    re.compile(rf"(?<![A-Za-z])(?i:u[uv]?w?|vv?)\s*[\[(_]\s*{ABBREVIATED}"),
)
"""Not those of a table, wherever they stand."""
ABOUT_COLUMNS = re.compile(r"(?i:(?<![a-z])(?:uu?|vv?|uvw?|baselines?|units?|columns?)(?![a-z]))")
LENGTHS = re.compile(
    r"(?i:(?<![a-z])(?<![0-9.])(?<![0-9.][\s-])(?:(?:kilo|centi)?met(?:re|er)s?|(?:nano|micro)seconds?)(?![a-z]))"
    rf"|(?i:\bin\s+|\bunits?\s*(?:of|are|is)?\s*[:=]?\s*[\[(]?)(?:{ABBREVIATED}|seconds(?![a-z]))"
)
"""Other units of u and v in a comment about columns; a number before them makes them a length of something else."""


def is_header(text: str) -> bool:
    """Whether a line without # names columns: it has no number, but the words u and v."""
    named = {column for _, column in _columns(text)}
    return {"u", "v"} <= named and not any(map(_is_number, re.split(r"[,\s]+", text)))


def check_comment(path: Path, text: str) -> None:
    """Refuse a comment on a table that has other columns or units than `TABLE`."""
    _check_order(path, text)
    units = re.findall(r"\[([^\]]*)\]", text)
    if len(units) == len(TABLE):
        check_units(path, dict(zip(TABLE, units, strict=True)), TABLE)
    said = {name: unit for name in NAMES if (unit := _unit(name, text)) is not None}
    if {"u", "v"} <= set(said):  # else it is a comment about something else
        check_units(path, said, {name: TABLE[name] for name in said})
    other = next(filter(None, (pattern.search(text) for pattern in OTHER_UNITS)), None)
    if other is None and ABOUT_COLUMNS.search(text):
        other = LENGTHS.search(text)
    if other is not None:
        raise ValueError(
            f"{path}: columns must be in {', '.join(TABLE.values())}; a comment speaks of {other[0]}: convert them "
            "first, or take it out"
        )


def check_units(path: Path, units: dict[str, str], expected: dict[str, str]) -> None:
    """Refuse a column of `expected` for which `units` has another unit."""
    for name, unit in expected.items():
        said = units[name].strip()
        if _plain(said) not in SPELLINGS.get(unit, (unit,)):
            what = f"says [{said}]; convert it first" if said else "names no unit"
            raise ValueError(f"{path}: {name} must be in [{unit}], the file {what}")


def _plain(unit: str) -> str:
    power = unit.lower().replace("⁻²", "^-2").replace("²", "^2").replace("**", "^")
    return re.sub(r"[\s(){}$\\]", "", power)


def _unit(name: str, text: str) -> str | None:
    """What follows `name` in brackets; V may be a visibility where v is there too."""
    pattern = rf"(?<![A-Za-z]){NAMES[name]}\s*[\[(](?!V\))([^\])]*)"
    found = re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE)
    return None if found is None else found[1]


def _columns(text: str) -> list[tuple[str, str]]:
    """Parts of `text`, between commas or spaces, and the column of `TABLE` each is: "" no column, ? one of no table."""
    found = []
    for part in map(str.strip, text.split(",") if "," in text else text.split()):
        names = (name for name, pattern in NAMES.items() if re.match(rf"{pattern}(?![a-z])", part, re.IGNORECASE))
        found.append((part, next(names, "?" if OTHER_COLUMNS.match(part) else "")))
    return found


def _check_order(path: Path, text: str) -> None:
    """Refuse five names of columns that are not those of `TABLE` in its order."""
    found = _columns(text)
    if len(found) == len(TABLE) and all(column for _, column in found):
        for (part, column), expected in zip(found, TABLE, strict=True):
            if column != expected:
                raise ValueError(f"{path}: columns must be {', '.join(TABLE)}; the file says {part} for {expected}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
