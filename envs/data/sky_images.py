"""Images of the sky in FITS files, with their pixel scale, noise maps and masks; nothing is dropped without a word."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.data.location import MissingDataError
from envs.data.sky_coordinates import centre_of, same_scale, scale_of

__all__ = [
    "SkyImage",
    "pixel_scale_of",
    "read_mask",
    "read_noise_map",
    "read_sky_image",
    "read_sky_stack",
]

UNSEEN = 1e10  # times the smallest: noise so large stands for "not measured"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SkyImage:
    """An image of the sky."""

    values: NDArray[np.float64]
    """[H, W], rows in the order of the file; finite, unless it was read with `blank`."""
    pixel_scale: float
    """arcsec per pixel."""
    place: str
    """File and unit, for messages."""
    unit: str = ""
    """What BUNIT says."""
    centre: tuple[float, float] | None = None
    """Right ascension and declination of its middle, degrees, where the header has celestial coordinates."""

    def check_centre(self, other: SkyImage) -> None:
        """Raises ValueError if the middle of `other` is another place on the sky, by more than the larger pixels."""
        if self.centre is None or other.centre is None:
            return
        from astropy.coordinates import angular_separation

        apart = 3600 * math.degrees(float(angular_separation(*np.radians([*self.centre, *other.centre]))))
        if apart > max(self.pixel_scale, other.pixel_scale):
            here, there = (f"{each[0]:.5f}, {each[1]:.5f} degrees" for each in (self.centre, other.centre))
            raise ValueError(
                f"{other.place}: the middle must be where that of {self.place} is, at {here}, got {there}, "
                f"{apart:.4g} arcsec away"
            )

    def without(self, hidden: NDArray[np.bool_]) -> SkyImage:
        """The same with 0 where `hidden` [H, W], as many pipelines have NaN in pixels that they mask.

        Raises:
            ValueError: a value that is not hidden is not finite.
        """
        values = np.where(hidden, 0.0, self.values)
        _finite(self.place, values, "; what is hidden by a mask, or was not exposed, may be")
        return replace(self, values=values)


def read_sky_image(
    path: Path,
    hdu: str | int = 0,
    pixel_scale: float | None = None,
    units: tuple[str, ...] = (),
    blank: bool = False,
) -> SkyImage:
    """The image in unit `hdu` (name or number) of the FITS file `path`.

    Number 0 is the first image that there is: many files have an empty unit before it. All values must be finite; with
    `blank`, for `SkyImage.without` to see to, they may be others. The pixel scale (arcsec) is that of the header's CD,
    PC or CDELT, if these are celestial, or PIXELSCL or PIXSCALE, else `pixel_scale`. `units`, where given, is what
    BUNIT may say, if it says anything.

    Raises:
        MissingDataError: no such file, or astropy is not installed.
        ValueError: no such image, one that is not of two axes, values that are not finite, another unit, no pixel
            scale, pixels that are not square, or a `pixel_scale` that is not that of the header.
    """
    place, values, header = _read(path, hdu)
    return _image(place, values, header, pixel_scale, units, blank)


def read_sky_stack(path: Path, hdu: str | int = 0, pixel_scale: float | None = None) -> list[SkyImage]:
    """The images of a stack [N, H, W], or the one image [H, W], in unit `hdu` of `path`; see `read_sky_image`."""
    place, values, header = _read(path, hdu, (2, 3))
    if values.ndim == 2:
        return [_image(place, values, header, pixel_scale)]
    return [_image(f"{place}, number {i}", each, header, pixel_scale) for i, each in enumerate(values)]


def _image(
    place: str,
    values: NDArray[np.float64],
    header: Any,  # noqa: ANN401 - a header of astropy
    pixel_scale: float | None,
    units: tuple[str, ...] = (),
    blank: bool = False,
) -> SkyImage:
    if not blank:
        _finite(place, values)
    said = str(header.get("BUNIT", "")).strip()
    if units and said and _plain(said) not in {_plain(unit) for unit in units}:
        raise ValueError(f"{place}: values must be in {units[0]}, BUNIT says {said}")
    if pixel_scale is not None and not (pixel_scale > 0 and math.isfinite(pixel_scale)):
        raise ValueError(f"{place}: a pixel scale must be positive, in arcsec, got {pixel_scale}")
    scale = scale_of(header, place)
    if scale is None and pixel_scale is None:
        raise ValueError(
            f"{place}: the header has no pixel scale on the sky (CD, PC or CDELT with CTYPE or CUNIT, or PIXELSCL in "
            "arcsec): write it into the file, or give pixel_scale, where that is an option for files, in its unit"
        )
    if scale is not None and pixel_scale is not None and not same_scale(scale, pixel_scale):
        raise ValueError(f"{place}: a pixel scale of {pixel_scale:g} arcsec is asked for, the header has {scale:.4g}")
    known = scale if scale is not None else pixel_scale
    assert known is not None
    return SkyImage(
        values=values, pixel_scale=known, place=place, unit=said, centre=centre_of(header, values.shape, place)
    )


def pixel_scale_of(path: Path, hdu: str | int) -> float | None:
    """Arcsec per pixel of the image in unit `hdu` of `path`, if its header says; see `read_sky_image`."""
    place, _, header = _read(path, hdu)
    return scale_of(header, place)


def _finite(place: str, values: NDArray[np.float64], hint: str = "") -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{place}: {int(bad.sum())} of {values.size} values are not finite, the first at [{row}, {column}]{hint}"
        )


def _plain(unit: str) -> str:
    """A unit in small letters, in the singular, without signs of powers and products: cm**2 s and cm^2 s are one."""
    return re.sub(r"(electron|count|photon)s", r"\1", re.sub(r"[\s*^.]", "", unit.lower()))


def read_noise_map(
    path: Path,
    hdu: str | int,
    shape: tuple[int, ...],
    like: SkyImage | None = None,
    hidden: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(standard deviations [H, W], where they mean that nothing was measured [H, W]) of the image of `shape`.

    Its BUNIT and pixel scale must be those of the image `like`, where it has any. Pipelines mark pixels without data by
    a huge number: what is above 10^10 times the smallest is one of these, and 1 is in its place, as it is where
    `hidden` [H, W], which may hold anything.

    Raises:
        MissingDataError: no such file, or astropy is not installed.
        ValueError: another shape, unit or pixel scale, or a number that is negative, zero or not finite.
    """
    place, values, header = _read(path, hdu)
    _same_shape(place, values, shape)
    if like is not None:
        said, scale = str(header.get("BUNIT", "")).strip(), scale_of(header, place)
        if said and like.unit and _plain(said) != _plain(like.unit):
            raise ValueError(f"{place}: BUNIT must be that of {like.place}, {like.unit}, got {said}")
        if scale is not None and not same_scale(scale, like.pixel_scale):
            raise ValueError(
                f"{place}: pixels must be those of {like.place}, of {like.pixel_scale:.4g} arcsec, got {scale:.4g}"
            )
        own = replace(like, values=values, place=place, centre=centre_of(header, values.shape, place))
        like.check_centre(own)
    kept = np.ones(shape, bool) if hidden is None else ~hidden
    bad = kept & ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{place}: standard deviations of the noise must be positive and finite, got {values[row, column]:g} at "
            f"[{row}, {column}], one of {int(bad.sum())}"
        )
    unseen = kept.copy()
    unseen[kept] = values[kept] > UNSEEN * values[kept].min() if kept.any() else False
    return np.where(unseen | ~kept, 1.0, values), unseen


def read_mask(path: Path, hdu: str | int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[H, W] true where the mask in unit `hdu` of `path` has 1: a pixel to be left out of the image of `shape`.

    Raises:
        MissingDataError: no such file, or astropy is not installed.
        ValueError: another shape, or a number that is neither 0 nor 1.
    """
    place, values, _ = _read(path, hdu)
    _same_shape(place, values, shape)
    other = (values != 0) & (values != 1)
    if other.any():
        row, column = np.argwhere(other)[0]
        raise ValueError(
            f"{place}: a mask is of 0 (kept) and 1 (left out), got {values[row, column]} at [{row}, {column}]"
        )
    return values == 1


def _read(path: Path, hdu: str | int, axes: tuple[int, ...] = (2,)) -> tuple[str, NDArray[np.float64], Any]:
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingDataError("FITS files are read by astropy: pip install 'rtb[astronomy]' or astropy") from None
    place = f"{path}[{hdu}]"
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}")
    try:
        with fits.open(path) as file:
            if hdu not in file:
                raise ValueError(f"{path} has no unit {hdu!r}, only {', '.join(unit.name or '-' for unit in file)}")
            unit, values = file[hdu], file[hdu].data
            images = [number for number, each in enumerate(file) if each.is_image and each.header["NAXIS"] >= 2]
            if hdu == 0 and values is None and len(images) == 1:
                unit, values, place = file[images[0]], file[images[0]].data, f"{path}[{images[0]}]"
            if unit.is_image and values is not None:
                while values.ndim > axes[-1] and len(values) == 1:  # an axis of one frequency, say
                    values = values[0]
            if not unit.is_image or values is None or values.ndim not in axes or values.size == 0:
                shape = None if values is None else list(values.shape)
                others = [
                    f"{number} ({file[number].name or 'no name'})" for number in images if file[number] is not unit
                ]
                raise ValueError(
                    f"{place} must be an image of {axes[0]} axes, got {type(unit).__name__} of shape {shape}"
                    + (f"; there are images in {', '.join(others)}: write one to a file of its own" if others else "")
                )
            return place, values.astype(np.float64), unit.header.copy()
    except (OSError, TypeError) as error:  # of a file that ends early astropy says the latter
        raise ValueError(f"cannot read {path} as FITS, is all of it there? {error}") from None


def _same_shape(place: str, values: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{place} must be of the image's shape {list(shape)}, got {list(values.shape)}")
