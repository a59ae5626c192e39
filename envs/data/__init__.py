"""Data: draws of x by name or from your own files, and where public data lies.

A data set is a function with typed, defaulted keyword arguments and a line of `DATASETS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from diffusion.registry import nearest
from envs.data.cluster_profiles import cluster_profiles
from envs.data.dataset import Dataset
from envs.data.files import fits, idx, images, npz
from envs.data.image_sets import cifar10, digits, galaxies, mnist
from envs.data.location import MissingDataError, data_file
from envs.data.lognormal_fields import lognormal_fields
from envs.data.lorenz import lorenz63, lorenz96
from envs.data.noise_images import hst_noise, noise
from envs.data.readers import read_fits, read_idx, read_images, read_npz
from envs.data.visibilities import VisibilityTable
from envs.data.visibility_files import read_visibilities
from envs.data.xray_spectra import xray_spectra

__all__ = [
    "DATASETS",
    "Dataset",
    "MissingDataError",
    "VisibilityTable",
    "data_file",
    "dataset_factory",
    "load_dataset",
    "read_fits",
    "read_idx",
    "read_images",
    "read_npz",
    "read_visibilities",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "galaxies": galaxies,
    "lorenz63": lorenz63,
    "lorenz96": lorenz96,
    "xray-spectra": xray_spectra,
    "cluster-profiles": cluster_profiles,
    "hst-noise": hst_noise,
    "noise": noise,
    "lognormal-fields": lognormal_fields,
    "images": images,
    "npz": npz,
    "idx": idx,
    "fits": fits,
}
"""Data sets by name; the last five are your own, of noise or of a format."""


def dataset_factory(name: str) -> Callable[..., Dataset]:
    """The function that makes the data set called `name`.

    Raises:
        ValueError: no such data set; the message names the nearest.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]


def load_dataset(name: str, **options: object) -> Dataset:
    """The data set called `name`, with `options` for its function's keyword arguments.

    Raises:
        ValueError: unknown name or option (the message names the nearest), or data that cannot be read.
        MissingDataError: data or a library are not on this machine.
    """
    factory = dataset_factory(name)
    known = inspect.signature(factory).parameters
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "it has none"
            raise ValueError(f"unknown option {key!r} of data set {name!r}; {hint}")
    return factory(**options)
