r"""Maps of the shapes of galaxies: two ellipticities a pixel, the noise of their mean, and pixels that have none.

The mean ellipticity of the n galaxies in a pixel is an estimate of the shear there, of standard deviation

    sigma = sigma_e / sqrt(n)    for each component, sigma_e being the scatter of intrinsic shapes.

Rows and columns are in the order of the file; e1 is positive for images that are stretched along the rows of pixels,
e2 for those along the diagonal on which row and column rise together (with rows shown from bottom to top).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.data.location import data_file
from envs.data.sky_images import read_mask, read_sky_image

__all__ = ["FOLDER", "JAX_LENSING", "ShearMap", "cosmos_shear", "read_shear_map"]

FOLDER = "weak_lensing_jaxlensing"
JAX_LENSING = "the data of jax-lensing (CosmoStat/jax-lensing, folder data)"
COSMOS_SCALE = 0.29 * 60  # arcsec per pixel; the files do not say
NO_UNIT = ("no unit", "1", "dimensionless", "none", "ellipticity", "shear")  # what BUNIT may say, if anything
LARGEST = 2.0  # a mean of shapes beyond is in other units, such as per cent; corrections reach 1.3 in COSMOS
FILLED = 0.5  # of a block of pixels that must have been seen

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShearMap:
    """Shear and its noise in the pixels of a map."""

    shear: NDArray[np.float64]
    """[2, H, W] mean ellipticities, zero where not seen; no unit."""
    std: NDArray[np.float64]
    """[2, H, W] standard deviation of each, one where not seen."""
    seen: NDArray[np.bool_]
    """[H, W] pixels with a measurement."""
    pixel_scale: float
    """arcsec per pixel."""

    def field(self, size: int, binning: int) -> ShearMap:
        """The middle `size` x `size` blocks of `binning` x `binning` pixels: means weighted by inverse variance.

        A block of which less than half was seen is not seen, and beyond the map nothing is; a line of the log says how
        many seen pixels are lost.
        """
        width = size * binning
        window = [_window(length, width) for length in self.seen.shape]
        shear, std, seen = np.zeros((2, width, width)), np.ones((2, width, width)), np.zeros((width, width), bool)
        (inside_rows, rows), (inside_columns, columns) = window
        seen[inside_rows, inside_columns] = self.seen[rows, columns]
        shear[:, inside_rows, inside_columns] = self.shear[:, rows, columns]
        std[:, inside_rows, inside_columns] = self.std[:, rows, columns]

        def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return values.reshape(*values.shape[:-2], size, binning, size, binning).sum((-3, -1))

        weight = np.where(seen, std**-2, 0.0)
        weights, kept = total(weight), total(seen.astype(float)) >= FILLED * binning**2
        lost = int(self.seen.sum() - total(seen.astype(float))[kept].sum())
        if lost:
            _log.info("%d of %d pixels with a measurement are left out", lost, int(self.seen.sum()))
        weights = np.where(kept, weights, 1.0)
        return ShearMap(
            shear=np.where(kept, total(weight * shear) / weights, 0.0),
            std=weights**-0.5,
            seen=kept,
            pixel_scale=binning * self.pixel_scale,
        )


def _window(length: int, width: int) -> tuple[slice, slice]:
    """(slice of the window of `width`, slice of an axis of `length`) where the two overlap, middle on middle."""
    start = (length - width) // 2
    low, high = max(start, 0), min(start + width, length)
    return slice(low - start, high - start), slice(low, high)


def read_shear_map(
    e1: Path, e2: Path, noise: tuple[Path, Path], left_out: NDArray[np.bool_] | None, pixel_scale: float | None
) -> ShearMap:
    """The map in FITS files of `e1`, `e2` and the standard deviation of each (`noise`); `pixel_scale` in arcsec.

    `left_out` [H, W] are pixels without a measurement, where files may hold anything, NaN too.

    Raises:
        MissingDataError: a file is not there, or astropy is not installed.
        ValueError: an image of another shape or pixel scale, numbers that are not finite, ellipticities in other units,
            or a standard deviation that is not positive.
    """
    first = read_sky_image(e1, pixel_scale=pixel_scale, units=NO_UNIT, blank=True)
    shape = first.values.shape
    seen = np.ones(shape, bool) if left_out is None else ~left_out
    others = [read_sky_image(path, pixel_scale=first.pixel_scale, units=NO_UNIT, blank=True) for path in (e2, *noise)]
    for image in (first, *others):
        if image.values.shape != shape:
            raise ValueError(f"{image.place} must be of the shape {list(shape)} of e1, got {list(image.values.shape)}")
        first.check_centre(image)
    shear, std = ([image.without(~seen) for image in pair] for pair in ((first, others[0]), others[1:]))
    for image in shear:
        fine = np.abs(image.values) <= LARGEST
        _check(image.place, f"mean ellipticities must be within -{LARGEST:g} to {LARGEST:g}", image.values, fine)
    for image in std:
        fine = ~seen | (image.values > 0)
        _check(image.place, "the noise must be positive where nothing is masked", image.values, fine)
    if not seen.any():
        raise ValueError(f"{first.place}: the mask leaves no pixel")
    return ShearMap(
        shear=np.stack([image.values for image in shear]),
        std=np.where(seen, np.stack([image.values for image in std]), 1.0),
        seen=seen,
        pixel_scale=first.pixel_scale,
    )


def _check(place: str, expected: str, values: NDArray[np.float64], fine: NDArray[np.bool_]) -> None:
    if not fine.all():
        row, column = np.argwhere(~fine)[0]
        raise ValueError(
            f"{place}: {expected}, got {values[row, column]:g} at [{row}, {column}], one of {int((~fine).sum())}"
        )


def cosmos_shear() -> ShearMap:
    """The COSMOS field seen by Hubble, 360 x 360 pixels of 0.29 arcmin, with 417,117 galaxies in those not masked.

    Shapes of Schrabback et al. 2010 (A&A 516, A63), as binned by Remy et al. 2023 (A&A 672, A51). The files of noise
    hold sigma_e / sqrt(n) with sigma_e 0.305 for whole numbers n of galaxies; that of the mask has 1 where there are
    some.

    Raises:
        MissingDataError: the files are not on this machine, or astropy is not installed.
    """
    names = ("cosmos_full_e1_0.29arcmin360", "cosmos_full_e2_0.29arcmin360", "std1", "std2")
    e1, e2, *noise = (data_file(FOLDER, f"{name}.fits", source=JAX_LENSING) for name in names)
    mask = data_file(FOLDER, "cosmos_full_mask_0.29arcmin360.fits", source=JAX_LENSING)
    return read_shear_map(e1, e2, (noise[0], noise[1]), ~read_mask(mask, 0, (360, 360)), COSMOS_SCALE)
