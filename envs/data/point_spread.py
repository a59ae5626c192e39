"""Point spreads: what an instrument makes of a point of light, an image of known pixel scale."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from envs.data.sky_coordinates import same_scale
from envs.data.sky_images import read_sky_image, read_sky_stack

__all__ = [
    "PointSpread",
    "checked_point_spread",
    "gaussian_point_spread",
    "read_point_spread",
    "read_point_spreads",
]

_log = logging.getLogger(__name__)

NEGATIVE = 1e-3  # of the peak: what a model of a point spread may fall below zero by
NORMALISED = 0.1  # by how much the sum may differ from one: a stamp does not hold all of the wings
CENTRED = 2.0  # pixels that the peak may be away from the middle: what is seen through it is then moved by as much


@dataclass(frozen=True, slots=True, eq=False)
class PointSpread:
    """An image of a point."""

    kernel: Tensor
    """[h, w] float64 of odd sizes, not negative, sum one."""
    pixel_scale: float
    """arcsec per pixel."""

    def __post_init__(self) -> None:
        if not (self.pixel_scale > 0 and math.isfinite(self.pixel_scale)):
            raise ValueError(f"the pixel scale of a point spread must be positive, in arcsec, got {self.pixel_scale}")
        if self.kernel.ndim != 2 or not all(size % 2 for size in self.kernel.shape):
            raise ValueError(f"a point spread must be [h, w] with h and w odd, got shape {tuple(self.kernel.shape)}")
        total = float(self.kernel.sum())
        if not (bool((self.kernel >= 0).all()) and abs(total - 1) < 1e-6):
            raise ValueError(f"a point spread must not be negative and have the sum one, got {total:.4g}")

    def at(self, pixel_scale: float) -> PointSpread:
        """Itself, if its pixels are of `pixel_scale` arcsec.

        Raises:
            ValueError: they are not.
        """
        if not same_scale(self.pixel_scale, pixel_scale):
            raise ValueError(
                f"the point spread has pixels of {self.pixel_scale:g} arcsec, the image ones of {pixel_scale:g}: "
                "resample it (`PointSpread.resampled`), or give its own pixel scale"
            )
        return self

    def middle(self, size: int) -> Tensor:
        """[h, w] the kernel's middle of `size` x `size` pixels, or all of it; light beyond is left out of the sum."""
        if size < 1 or size % 2 == 0:
            raise ValueError(f"the middle of a point spread is an odd number of pixels, got {size}")
        full = self.kernel.shape
        rows, columns = (max((length - size) // 2, 0) for length in full)
        return self.kernel[rows : full[0] - rows, columns : full[1] - columns]

    def resampled(self, pixel_scale: float) -> PointSpread:
        """The same at pixels of `pixel_scale` arcsec: each holds what falls into it, light spread evenly over a pixel.

        Exact for pixels that are a whole odd number of its own, and a slight blur otherwise.
        """
        rows, columns = (_shares(size, pixel_scale / self.pixel_scale) for size in self.kernel.shape)
        kernel = rows @ self.kernel @ columns.T
        return PointSpread(kernel / kernel.sum(), pixel_scale)


def _shares(size: int, ratio: float) -> Tensor:
    """[odd number, size] how much of each of `size` pixels lies in new ones that are `ratio` times as wide."""
    half = math.ceil((size / ratio - 1) / 2 - 1e-9)
    edges = (torch.arange(-half, half + 2, dtype=torch.float64) - 0.5) * ratio
    own = torch.arange(size, dtype=torch.float64) - size / 2
    low, high = edges[:-1, None].maximum(own), edges[1:, None].minimum(own + 1)
    return (high - low).clamp_min(0)


def gaussian_point_spread(fwhm: float, pixel_scale: float) -> PointSpread:
    """A Gaussian of full width `fwhm` (arcsec) at half of its peak, to four standard deviations."""
    if not (fwhm > 0 and pixel_scale > 0):
        raise ValueError(f"fwhm and pixel_scale must be positive, in arcsec, got {fwhm} and {pixel_scale}")
    std = fwhm / (2 * math.sqrt(2 * math.log(2))) / pixel_scale
    offset = torch.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1, dtype=torch.float64)
    profile = (-0.5 * (offset / std).square()).exp()
    kernel = profile[:, None] * profile
    return PointSpread(kernel / kernel.sum(), pixel_scale)


def read_point_spread(path: Path, pixel_scale: float | None = None, hdu: str | int = 0) -> PointSpread:
    """The point spread in unit `hdu` of the FITS file `path`.

    `pixel_scale` (arcsec) where the header has none; many do not. Values below zero by less than a thousandth of the
    peak are set to zero, and the sum to one.

    Raises:
        MissingDataError: astropy is not installed.
        ValueError: no image, no pixel scale or two that differ, sizes that are even, values that are not finite or
            negative, a sum that is not one to a tenth, or a peak away from the middle.
    """
    image = read_sky_image(path, hdu, pixel_scale)
    return checked_point_spread(torch.from_numpy(image.values), image.pixel_scale, image.place)


def read_point_spreads(path: Path, pixel_scale: float | None = None) -> list[PointSpread]:
    """The point spreads of a stack [N, h, w] in the first unit of the FITS file `path`, or its only one [h, w].

    Each is checked as by `read_point_spread`, and called by its number, from 0.
    """
    stack = read_sky_stack(path, 0, pixel_scale)
    return [checked_point_spread(torch.from_numpy(each.values), each.pixel_scale, each.place) for each in stack]


def checked_point_spread(kernel: Tensor, pixel_scale: float, place: str) -> PointSpread:
    """The point spread of `kernel` [h, w], which messages call `place`; see `read_point_spread`."""
    kernel = kernel.double()
    if not all(size % 2 for size in kernel.shape):
        raise ValueError(f"{place}: a point spread must have odd sizes, so that it has a middle, got {[*kernel.shape]}")
    peak, total = float(kernel.max()), float(kernel.sum())
    low = int(kernel.argmin())
    if not float(kernel.min()) >= -NEGATIVE * peak:
        row, column = divmod(low, kernel.shape[1])
        raise ValueError(f"{place}: a point spread is not negative, got {float(kernel.min()):.3g} at [{row}, {column}]")
    if not abs(total - 1) <= NORMALISED:
        raise ValueError(
            f"{place}: a point spread must have the sum one, to {NORMALISED}, got {total:.4g}: normalise it"
        )
    row, column = divmod(int(kernel.argmax()), kernel.shape[1])
    if max(abs(row - kernel.shape[0] // 2), abs(column - kernel.shape[1] // 2)) > CENTRED:
        raise ValueError(
            f"{place}: the peak of a point spread must be in its middle, to {CENTRED:g} pixels, got [{row}, {column}] "
            f"of {[*kernel.shape]}"
        )
    if (row, column) != (kernel.shape[0] // 2, kernel.shape[1] // 2):
        _log.warning(
            "%s: the peak is at [%d, %d], not in the middle of %s: what is seen through it is moved by as much",
            place,
            row,
            column,
            [*kernel.shape],
        )
    kernel = kernel.clamp_min(0)
    return PointSpread(kernel / kernel.sum(), pixel_scale)
