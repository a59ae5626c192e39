"""Files of many draws of x: IDX, npz, folders of images, FITS. Nothing is unpickled."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.data.location import MissingDataError

__all__ = ["npz_names", "read_fits", "read_idx", "read_images", "read_npz", "read_x"]

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GREY = ("1", "L", "LA")  # Pillow's modes; 16 bits of grey stay as they are
IMAGES = (".png", ".jpg", ".jpeg")
FITS = (".fits", ".fit", ".fits.gz")


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file, the format of MNIST, gzipped or not.

    Two zero bytes, the type, the number of dimensions, their sizes (big-endian, 32 bits), the numbers
    (Y. LeCun, C. Cortes, C. Burges, The MNIST database).

    Raises:
        ValueError: it is no such file, or ends early.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"cannot unzip {path}: {error}") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(f"expected an IDX file, but {path} starts with {data[:4].hex(' ')!r}")
    kind, start = np.dtype(IDX_TYPES[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path} ends within its header of {start} bytes")
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    expected = start + kind.itemsize * math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{path} must have {expected} bytes for an array of shape {shape}, got {len(data)}")
    return np.frombuffer(data[start:], kind).reshape(shape).astype(kind.newbyteorder("="))


def read_npz(path: Path, key: str | None = None) -> NDArray[Any]:
    """The array `key` of an npz file, or the only one there is; of an npy file, its array.

    Raises:
        ValueError: it is no such file, or has no such array.
    """
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as file:
        if key is None and len(file.files) == 1:
            key = file.files[0]
        if key not in file.files:
            asked = "several arrays and needs a key" if key is None else f"no array {key!r}"
            raise ValueError(f"{path} has {asked}; choose one of {', '.join(file.files)}")
        try:
            return file[key]
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise ValueError(f"cannot read the array {key} of {path}: {_reason(error)}") from None


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an npz file.

    Raises:
        ValueError: it is no such file.
    """
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} must be an npz of arrays with names, got an npy of one without")
    with loaded as file:
        return list(file.files)


def _load(path: Path) -> Any:  # noqa: ANN401 - an array or a file of several
    try:
        return np.load(path, allow_pickle=False)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"cannot read {path} as npz or npy: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What was wrong; of what it does not know numpy believes that it is a pickle, and says how to load that."""
    if "pickle" not in str(error):
        return str(error)
    return "expected arrays of numbers, got another kind of file or pickled objects, and nothing is unpickled"


def read_x(path: Path) -> NDArray[np.float32]:
    """[N, *D] x in their own units, from the only array of an npz file or from an npy file.

    Raises:
        ValueError: it is no such file, or holds something else than finite floating-point numbers.
    """
    array = read_npz(path)
    if array.dtype.kind != "f" or array.ndim < 2 or not len(array):
        raise ValueError(
            f"{path}: expected x [N, *D] as floating-point numbers in the units of the prior, got {array.dtype} "
            f"{list(array.shape)}"
        )
    if not np.isfinite(array).all():
        count = np.count_nonzero(~np.isfinite(array))
        raise ValueError(f"{path}: every number must be finite, got {count} NaN or infinite ones of {array.size}")
    return array.astype(np.float32)


def read_images(folder: Path) -> tuple[NDArray[Any], NDArray[np.int64] | None, tuple[str, ...]]:
    """(images [N, C, H, W], labels [N] or None, class names) of the PNG and JPEG files in `folder`, sorted by path.

    Grey images have one channel, colours three, and transparency is dropped. Where all lie in folders of their own,
    these are the classes.

    Raises:
        ValueError: there are none, or they are not all alike.
    """
    from PIL import Image, UnidentifiedImageError  # only where there are images

    if not folder.is_dir():
        raise ValueError(f"expected a folder of images, got the file {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not paths:
        raise ValueError(f"{folder} has no image that ends in {', '.join(IMAGES)}")
    images: list[NDArray[Any]] = []
    for path in paths:
        try:
            with Image.open(path) as file:
                deep = file.mode.startswith("I;16")
                image = np.asarray(file if deep else file.convert("L" if file.mode in GREY else "RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"cannot read {path} as an image: {error}") from None
        image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise ValueError(
                f"images must be alike: {paths[0]} is {images[0].dtype} {list(images[0].shape)}, "
                f"{path} is {image.dtype} {list(image.shape)}"
            )
        images.append(image)
    names = tuple(sorted({path.parent.relative_to(folder).as_posix() for path in paths}))
    labels = None if "." in names else np.array([names.index(p.parent.relative_to(folder).as_posix()) for p in paths])
    return np.stack(images), labels, () if labels is None else names


def read_fits(path: Path) -> NDArray[np.float32]:
    """[N, H, W] images of a FITS file, or of all of a folder: of each the first extension that holds numbers.

    An extension of two axes is an image, one of three a stack of them.

    Raises:
        MissingDataError: astropy is not installed.
        ValueError: there is no image, or they are not of one size.
    """
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingDataError("FITS files are read by astropy: pip install 'rtb[astronomy]' or astropy") from None
    paths = sorted(p for p in path.iterdir() if p.name.lower().endswith(FITS)) if path.is_dir() else [path]
    stacks: list[NDArray[np.float32]] = []
    for each in paths:
        try:
            with fits.open(each) as file:
                found = [unit.data for unit in file if unit.is_image and unit.data is not None]
                if not found or found[0].ndim not in (2, 3):
                    raise ValueError(f"{each} must hold an image or a stack of them, got {file.info(output=False)}")
                stack = found[0].astype(np.float32).reshape(-1, *found[0].shape[-2:])
        except (OSError, TypeError) as error:  # of a file that ends early astropy says the latter
            raise ValueError(f"cannot read {each} as FITS, is all of it there? {error}") from None
        if stacks and stack.shape[1:] != stacks[0].shape[1:]:
            raise ValueError(
                f"images must be of one size: {paths[0]} has {stacks[0].shape[1:]}, {each} {stack.shape[1:]}"
            )
        stacks.append(stack)
    if not stacks:
        raise ValueError(f"{path} has no file that ends in {', '.join(FITS)}")
    return np.concatenate(stacks)
