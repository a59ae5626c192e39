"""A small telescope's files in the OGIP formats: 6 channels from number `first` on, 5 bins of energy of 1 to 6 keV."""

from pathlib import Path

import numpy as np
from astropy.io import fits

ENERGY = np.arange(1.0, 7.0)  # edges, keV
AREA = np.array([10.0, 30.0, 40.0, 20.0, 5.0])  # cm^2
CHANNEL_ENERGY = np.arange(0.75, 7.0)  # edges, keV
COUNTS = np.array([3, 9, 14, 7, 2, 0])
BESIDE = np.array([4, 2, 0, 1, 0, 3])
# In bin 2 (from 0) photons are detected in two groups of channels, in bin 4 in none.
MATRIX = np.array(
    [
        [0.7, 0.3, 0.0, 0.0, 0.0, 0.0],
        [0.1, 0.6, 0.2, 0.0, 0.0, 0.0],
        [0.1, 0.0, 0.5, 0.4, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.2, 0.5, 0.3],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)


def _groups(row):
    """First channel and length of each run of channels with a value above 0."""
    inside = np.concatenate([[0], (row > 0).astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(inside) == 1), np.flatnonzero(np.diff(inside) == -1)
    return starts, ends - starts


def write_arf(path, energy=ENERGY, area=AREA, **header):
    """The effective area."""
    columns = [
        fits.Column("ENERG_LO", "E", "keV", array=energy[:-1]),
        fits.Column("ENERG_HI", "E", "keV", array=energy[1:]),
        fits.Column("SPECRESP", "E", "cm**2", array=area),
    ]
    unit = fits.BinTableHDU.from_columns(columns, name="SPECRESP")
    unit.header.update({"HDUCLAS1": "RESPONSE", "HDUCLAS2": "SPECRESP"} | header)
    unit.writeto(path, overwrite=True)
    return path


def write_rmf(path, matrix=MATRIX, first=1, layout="variable", **header):
    """The redistribution, its rows of variable length, or padded to a fixed one, or one full group a row."""
    groups = [_groups(row) for row in matrix]
    values = [row[row > 0] for row in matrix]
    if layout == "full":
        groups, values = [(np.array([0]), np.array([matrix.shape[1]]))] * len(matrix), list(matrix)
    counts = [len(starts) for starts, _ in groups]
    starts, lengths = [start + first for start, _ in groups], [length for _, length in groups]
    formats = ("PI()", "PI()", "PE()")
    if layout != "variable":
        most, longest = max(counts), max(map(len, values))
        starts, lengths = (np.array([np.resize([*v, *[0] * most], most) for v in part]) for part in (starts, lengths))
        values = np.array([np.resize([*v, *[0] * longest], longest) for v in values])
        formats = (f"{most}I", f"{most}I", f"{longest}E")
        if most == 1:
            starts, lengths = starts[:, 0], lengths[:, 0]
    else:
        starts, lengths, values = (_objects(part) for part in (starts, lengths, values))
    columns = [
        fits.Column("ENERG_LO", "E", "keV", array=ENERGY[:-1]),
        fits.Column("ENERG_HI", "E", "keV", array=ENERGY[1:]),
        fits.Column("N_GRP", "I", array=counts),
        fits.Column("F_CHAN", formats[0], array=starts),
        fits.Column("N_CHAN", formats[1], array=lengths),
        fits.Column("MATRIX", formats[2], array=values),
    ]
    unit = fits.BinTableHDU.from_columns(columns, name="MATRIX")
    unit.header.update({"HDUCLAS1": "RESPONSE", "HDUCLAS2": "RSP_MATRIX", "HDUCLAS3": "REDIST"} | header)
    if first != 1:
        unit.header["TLMIN4"] = first
    edges = [
        fits.Column("CHANNEL", "I", array=np.arange(6) + first),
        fits.Column("E_MIN", "E", "keV", array=CHANNEL_ENERGY[:-1]),
        fits.Column("E_MAX", "E", "keV", array=CHANNEL_ENERGY[1:]),
    ]
    bounds = fits.BinTableHDU.from_columns(edges, name="EBOUNDS")
    bounds.header.update({"HDUCLAS1": "RESPONSE", "HDUCLAS2": "EBOUNDS"})
    fits.HDUList([fits.PrimaryHDU(), unit, bounds]).writeto(path, overwrite=True)
    return path


def _objects(rows):
    made = np.empty(len(rows), dtype=object)
    made[:] = [np.asarray(row) for row in rows]
    return made


def write_pha(path, counts=COUNTS, first=1, *, extra=(), **header):
    """A spectrum; `extra` are (name, format, values) of more columns, a keyword of None is left out."""
    columns = [
        fits.Column("CHANNEL", "I", array=np.arange(len(counts)) + first),
        fits.Column("COUNTS", "E" if np.asarray(counts).dtype.kind == "f" else "J", array=counts),
        *(fits.Column(name, kind, array=values) for name, kind, values in extra),
    ]
    unit = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    keywords = {"HDUCLAS1": "SPECTRUM", "EXPOSURE": 1000.0, "BACKSCAL": 0.5, "AREASCAL": 1.0} | header
    unit.header.update({name: value for name, value in keywords.items() if value is not None})
    unit.writeto(path, overwrite=True)
    return path


def write_observation(folder: Path, first: int = 1, layout: str = "variable") -> Path:
    """All four files, which the spectrum's header names."""
    names = {"RESPFILE": "my.rmf", "ANCRFILE": "my.arf", "BACKFILE": "my_bg.pi"}
    write_rmf(folder / names["RESPFILE"], first=first, layout=layout)
    write_arf(folder / names["ANCRFILE"])
    write_pha(folder / names["BACKFILE"], BESIDE, first, EXPOSURE=2000.0, BACKSCAL=1.0)
    return write_pha(folder / "my.pi", first=first, **names)
