"""Data sets of your own files, in one of four formats.

Integers and FITS are images, whose `limits`, by default those of the integer type or of the values, become -1 and 1; so
do other numbers where `limits` are given. Images [N, H, W] get a channel. A tenth is held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from envs.data.dataset import Dataset, parted, scaled
from envs.data.location import MissingDataError
from envs.data.readers import read_fits, read_idx, read_images, read_npz

__all__ = ["fits", "idx", "images", "npz"]

Limits = tuple[float, ...] | None


def images(*, path: str = "", limits: tuple[float, ...] | None = None) -> Dataset:
    """A folder of PNG and JPEG images; folders in it are classes."""
    place = _existing(path, "images")
    values, labels, _ = read_images(place)
    return _dataset(values, place, limits, is_image=True, labels=labels)


def npz(*, path: str = "", key: str | None = None, limits: tuple[float, ...] | None = None) -> Dataset:
    """An array in an npz or npy file; `key` where there are several."""
    place = _existing(path, "npz")
    return _dataset(read_npz(place, key), place, limits)


def idx(*, path: str = "", limits: tuple[float, ...] | None = None) -> Dataset:
    """An IDX file, gzipped or not."""
    place = _existing(path, "idx")
    return _dataset(read_idx(place), place, limits)


def fits(*, path: str = "", limits: tuple[float, ...] | None = None) -> Dataset:
    """A FITS file of a stack of images, or a folder of such files; needs astropy."""
    place = _existing(path, "fits")
    return _dataset(read_fits(place), place, limits, is_image=True)


def _existing(path: str, name: str) -> Path:
    if not path:
        raise ValueError(f"data set {name!r} needs a path")
    if not Path(path).exists():
        raise MissingDataError(f"no data at {path}")
    return Path(path)


def _dataset(
    values: NDArray[Any],
    path: Path,
    limits: Limits,
    *,
    is_image: bool = False,
    labels: NDArray[Any] | None = None,
) -> Dataset:
    is_image = is_image or values.dtype.kind in "iu" or limits is not None
    if not is_image and values.dtype.kind != "f":
        raise ValueError(f"data must be numbers, got {values.dtype} in {path}")
    if is_image and values.ndim == 3:
        values = values[:, None]
    x = scaled(values, limits) if is_image else torch.from_numpy(values).float()
    train, held_out, split = parted(len(x))
    classes = None if labels is None else torch.from_numpy(labels)
    return Dataset(
        name=path.stem,
        train=x[train],
        held_out=x[held_out],
        train_labels=None if classes is None else classes[train],
        held_out_labels=None if classes is None else classes[held_out],
        split=split,
        source=path.name,
        licence="not stated",
        value_range=(-1.0, 1.0) if is_image and limits is None else None,
    )
