"""Data: draws of x by name or from your own files, and where public data lies.

A named data set is a function without arguments and a line of `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from diffusion.registry import nearest
from envs.data.dataset import Dataset, parted, scaled
from envs.data.images import cifar10, digits, galaxies, mnist
from envs.data.location import MissingDataError, data_file
from envs.data.lorenz import lorenz63, lorenz96
from envs.data.readers import read_fits, read_idx, read_images, read_npz

__all__ = [
    "DATASETS",
    "FORMATS",
    "Dataset",
    "MissingDataError",
    "data_file",
    "load_dataset",
    "read_fits",
    "read_idx",
    "read_images",
    "read_npz",
]

DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "galaxies": galaxies,
    "lorenz63": lorenz63,
    "lorenz96": lorenz96,
}
"""Data sets by name."""

FORMATS = ("images", "npz", "idx", "fits")
"""What `load_dataset` reads from a path instead."""


def load_dataset(
    name: str, path: Path | None = None, key: str | None = None, limits: tuple[float, float] | None = None
) -> Dataset:
    """The data set called `name`, or your own, in one of `FORMATS`, at `path`.

    `key` is the array of an npz file. Integers and FITS are images, whose `limits` (by default those of the integers,
    or of the values) become -1 and 1; so do other numbers where `limits` are given. Images [N, H, W] get a channel.

    Raises:
        ValueError: unknown name, an argument that it does not take, or data that cannot be read.
        MissingDataError: data or a library are not on this machine.
    """
    if name in DATASETS:
        if (path, key, limits) != (None, None, None):
            raise ValueError(f"data set {name!r} takes no path, key or limits")
        return DATASETS[name]()
    if name not in FORMATS:
        raise ValueError(f"unknown data set {name!r}; {nearest(name, [*DATASETS, *FORMATS])}")
    if path is None:
        raise ValueError(f"data in the format {name!r} need a path")
    if not path.exists():
        raise MissingDataError(f"no data at {path}")
    if key is not None and name != "npz":
        raise ValueError(f"a key is for npz files, got {key!r} for {name!r}")
    labels = None
    if name == "images":
        values, labels, _ = read_images(path)
    elif name == "npz":
        values = read_npz(path, key)
    else:
        values = read_idx(path) if name == "idx" else read_fits(path)
    integers = values.dtype.kind in "iu"
    is_image = integers or name == "fits" or limits is not None
    if values.ndim == 3 and is_image:
        values = values[:, None]
    if not is_image and values.dtype.kind != "f":
        raise ValueError(f"data must be numbers, got {values.dtype} in {path}")
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
        source=f"{name}: {path.name}",
        licence="not stated",
        value_range=(-1.0, 1.0) if is_image else None,
    )
