"""Images of noise: your own, and blank sky of the Hubble Space Telescope, to train the prior of a noise on.

Cut-outs of larger images are held out by place, so that no pixel of one is in both parts: those of the lowest fifth of
the rows (at least one cut-out high), side by side; above, there is one every quarter of its size.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.data.dataset import Dataset, parted
from envs.data.location import MissingDataError, data_file
from envs.data.readers import FITS, read_fits, read_npz

__all__ = ["hst_noise", "noise"]

_log = logging.getLogger(__name__)

HELD_OUT_SHARE = 5  # one in so many rows
STEPS = 4  # cut-outs to train on, in the space of one and each way
COSMOS_IMAGE = "147246.0_150.416558_1.998697_masknoise.fits"
COSMOS = f"the examples of GalSim (GalSim-developers/GalSim, examples/data/{COSMOS_IMAGE})"
GALAXY = 110  # pixels around the middle of that image, where its galaxy is


def noise(*, path: str = "", size: int = 0, key: str | None = None) -> Dataset:
    """Your own images of noise, in their units: npz (the array `key`, where there are several), npy, or FITS.

    They are [N, H, W], [N, C, H, W] or one image [H, W]. With `size` x is a cut-out of `size` x `size` pixels, else a
    whole image. What is no noise is to be left out or masked before: all of it is learned.
    """
    if not path:
        raise ValueError("data set 'noise' needs a path")
    place = Path(path)
    if not place.exists():
        raise MissingDataError(f"no data at {path}")
    is_fits = place.is_dir() or place.name.lower().endswith(FITS)
    images = stacked(read_fits(place) if is_fits else read_npz(place, key), place)
    _check(images, place, bool(size))
    if size:
        train, held_out, split = cut_outs(images, size)
    else:
        first, second, split = parted(len(images))
        train, held_out = images[first], images[second]
    return Dataset(
        name=place.stem, train=train, held_out=held_out, split=split, source=place.name, licence="not stated"
    )


def hst_noise(*, size: int = 16) -> Dataset:
    """Blank sky of 0.03 arcsec pixels in the F814W band, drizzled, in units of its standard deviation.

    One image of 4,056 seconds of the COSMOS field (Scoville et al. 2007, ApJS 172, 1; Koekemoer et al. 2007, ApJS 172,
    196) by the Advanced Camera for Surveys, eight exposures drizzled with a Gaussian kernel, so that pixels are
    correlated. Within 110 pixels of its middle is a galaxy; other objects were masked by noise before it was published.
    """
    path = data_file("cosmos_galsim", COSMOS_IMAGE, source=COSMOS)
    image = torch.from_numpy(read_fits(path).copy())[:, None]
    rows, columns = image.shape[-2:]
    away = np.hypot(*np.ogrid[-(rows // 2) : rows - rows // 2, -(columns // 2) : columns - columns // 2]) > GALAXY
    sky = image[0, 0][torch.from_numpy(away)].double()
    image = ((image.double() - sky.mean()) / sky.std(correction=0)).float()
    image[..., ~torch.from_numpy(away)] = torch.nan
    train, held_out, split = cut_outs(image, size)
    return Dataset(
        name="hst-noise",
        train=train,
        held_out=held_out,
        split=split,
        source="blank sky around a galaxy of COSMOS, HST ACS F814W, drizzled to 0.03 arcsec (an example of GalSim)",
        licence="that of GalSim (BSD style); the observations are public",
    )


def stacked(values: NDArray[Any], place: Path) -> Tensor:
    """[N, C, H, W] float32 of what a file holds."""
    if values.dtype.kind not in "iuf" or values.ndim not in (2, 3, 4):
        raise ValueError(
            f"images of noise must be numbers [H, W], [N, H, W] or [N, C, H, W], got {values.dtype} "
            f"{list(values.shape)} in {place}"
        )
    values = values[None] if values.ndim == 2 else values
    values = values[:, None] if values.ndim == 3 else values
    return torch.from_numpy(values.astype(np.float32))


def _check(images: Tensor, place: Path, masked: bool) -> None:
    """Refuses numbers that are not finite, but for NaN where `masked`."""
    bad = images.isinf() if masked else ~images.isfinite()
    if bool(bad.any()):
        number, channel, row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{place}: images of noise must be finite, got {float(images[number, channel, row, column])} at "
            f"[{row}, {column}] of number {number}; of what is masked by NaN cut-outs (`size`) are left out"
        )


def cut_outs(images: Tensor, size: int) -> tuple[Tensor, Tensor, str]:
    """(to train on, held out, how they were told apart): [N, C, size, size] each, of `images` [K, C, H, W].

    Cut-outs with NaN are left out.
    """
    rows, columns = images.shape[-2:]
    lowest = max(rows // HELD_OUT_SHARE // size, 1) * size
    if size < 1 or rows < lowest + size or columns < size:
        raise ValueError(
            f"cut-outs of {size} x {size} pixels, some of them held out, need images of at least {2 * size} x {size}, "
            f"got {rows} x {columns}"
        )
    parts, left_out = [], 0
    for part, step in ((images[..., : rows - lowest, :], max(size // STEPS, 1)), (images[..., -lowest:, :], size)):
        tiles = part.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 1, 4, 5)
        tiles = tiles.reshape(-1, images.shape[1], size, size)
        whole = ~tiles.flatten(1).isnan().any(1)
        if not bool(whole.any()):
            raise ValueError(f"every cut-out of {size} x {size} pixels has a pixel that is masked by NaN")
        left_out += int((~whole).sum())
        parts.append(tiles[whole])
    train, held_out = parts
    split = (
        f"{len(held_out):,} cut-outs of the lowest {lowest} of {rows} rows are held out; the {len(train):,} above "
        f"overlap, as one begins every {max(size // STEPS, 1)} pixels"
    )
    if left_out:
        split += f"; {left_out:,} with a pixel that is masked are left out"
        _log.info("%d cut-outs with a pixel that is masked by NaN are left out", left_out)
    return train, held_out, split
