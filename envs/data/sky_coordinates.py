"""What the header of a FITS image says of its pixels: their scale, and where on the sky the middle is."""

from __future__ import annotations

import logging
import math
from typing import Any

__all__ = ["centre_of", "same_scale", "scale_of"]

_log = logging.getLogger(__name__)

SCALE_KEYWORDS = ("PIXELSCL", "PIXSCALE")  # arcsec per pixel, where there are no coordinates: WebbPSF's, and surveys'
SAME_SCALE = 1e-2  # by which two pixel scales may differ and be one


def same_scale(one: float, other: float) -> bool:
    """Whether two pixel scales are one, to a hundredth."""
    return math.isclose(one, other, rel_tol=SAME_SCALE)


def scale_of(header: Any, place: str) -> float | None:  # noqa: ANN401 - a header of astropy
    """Arcsec per pixel from a header's CD, PC and CDELT or CDELT, or from `SCALE_KEYWORDS`; None if it does not say.

    Raises:
        ValueError: they contradict each other, are no numbers, in no unit of angles, or pixels are not square.
    """
    scales = {}
    for name in SCALE_KEYWORDS:
        if name in header:
            scales[name] = _number(header, name, place)
    from_coordinates = _coordinate_scale(header, place)
    if from_coordinates is not None:
        scales["CD, PC or CDELT"] = from_coordinates
    for name, scale in scales.items():
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"{place}: the pixel scale in the header ({name}) must be above 0, got {scale:g} arcsec")
        if not same_scale(scale, next(iter(scales.values()))):
            told = " and ".join(f"{each:.4g} ({name})" for name, each in scales.items())
            raise ValueError(f"{place}: the header has two pixel scales, {told} arcsec")
    return list(scales.values())[-1] if scales else None


def _coordinate_scale(header: Any, place: str) -> float | None:  # noqa: ANN401 - a header of astropy
    """That of the coordinates, if they are angles: of celestial CTYPE, with an angle as CUNIT, or with neither."""
    step = [_number(header, f"CDELT{axis}", place, 1.0) for axis in (1, 2)]
    rows = []
    for axis in (1, 2):
        if f"CD{axis}_{axis}" in header or f"CD{axis}_{3 - axis}" in header:
            rows.append([_number(header, f"CD{axis}_{other}", place, 0.0) for other in (1, 2)])
        elif f"PC{axis}_{axis}" in header or f"CDELT{axis}" in header:
            usual = (float(axis == 1), float(axis == 2))
            turned = [_number(header, f"PC{axis}_{other}", place, usual[other - 1]) for other in (1, 2)]
            rows.append([step[axis - 1] * each for each in turned])
    unit, kind = (str(header.get(name, "")).strip() for name in ("CUNIT1", "CTYPE1"))
    across, up = (math.hypot(*column) for column in zip(*rows, strict=True)) if len(rows) == 2 else (1.0, 1.0)
    if len(rows) < 2 or (not unit and (across == up == 1 or (kind and not _celestial(kind)))):
        return None  # 1 is what a step is that nobody has set, and a step along LINEAR or DETX is no angle
    factor = _arcsec(unit or "deg")
    if factor is None:
        if not _celestial(kind):
            return None  # pixels or um along LINEAR or DETX
        raise ValueError(f"{place}: the coordinates must be in deg or arcsec, CUNIT1 says {unit}")
    if not (across > 0 and up > 0):
        raise ValueError(f"{place}: the pixel scale in the header (CD, PC or CDELT) must not be 0, got {across}, {up}")
    if not same_scale(across, up):
        raise ValueError(f"{place}: pixels must be square, got {across * factor:g} x {up * factor:g} arcsec")
    return factor * math.sqrt(across * up)


def _celestial(kind: str) -> bool:
    """Whether a CTYPE is one of angles on the sky: RA---TAN, DEC--SIN, GLON-CAR, ..."""
    return kind.upper().startswith(("RA", "DEC")) or kind.upper()[1:4] in ("LON", "LAT")


def _arcsec(unit: str) -> float | None:
    """Of an angle; None for another unit."""
    from astropy import units

    try:
        return float(units.Unit(unit.lower()).to(units.arcsec))
    except (ValueError, units.UnitConversionError):
        return None


def _number(header: Any, name: str, place: str, usual: float = math.nan) -> float:  # noqa: ANN401 - as above
    value = header.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: {name} must be a number, got {value!r}")
    return float(value)


def centre_of(header: Any, shape: tuple[int, ...], place: str) -> tuple[float, float] | None:  # noqa: ANN401 - as above
    """Degrees of the middle of an image [H, W] whose header has celestial coordinates."""
    if not _celestial(str(header.get("CTYPE1", "")).strip()) or "CRVAL1" not in header:
        return None
    import warnings

    from astropy.wcs import WCS

    try:
        with warnings.catch_warnings():  # of dates and the like, which do not matter here
            warnings.simplefilter("ignore")
            right, up = WCS(header).celestial.pixel_to_world_values((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    except Exception as error:  # of any kind: tables of distortion, say, are in other units of the file
        _log.info("%s: where on the sky it is cannot be told from the header, and is not checked: %s", place, error)
        return None
    return float(right), float(up)
