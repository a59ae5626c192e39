"""Image data sets by name: scikit-learn's digits, and public ones under $RTB_DATA. Values in [-1, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.data.dataset import Dataset, scaled
from envs.data.location import data_file
from envs.data.readers import read_idx, read_npz

__all__ = ["TRAINING_DIGITS", "cifar10", "digits", "galaxies", "mnist"]

TRAINING_DIGITS = 1_500
RANGE = (-1.0, 1.0)
MNIST = (
    "the MNIST database of handwritten digits (LeCun, Cortes, Burges; yann.lecun.com/exdb/mnist, copied at "
    "github.com/fgnt/mnist), four files in IDX format"
)
CIFAR10 = (
    "CIFAR-10 (Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html), as npz with x uint8 [N, 32, 32, 3] and y [N]: "
    "16,000 of its training images and 4,000 of its test images"
)
GALAXIES = (
    "cut-outs of galaxies from the Sloan Digital Sky Survey (skyserver.sdss.org, as Galaxy Zoo has them), averaged to "
    "32 x 32 grey pixels, as npz with train and test uint8 [N, 32, 32]"
)


def digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), as scikit-learn has them."""
    from sklearn.datasets import load_digits  # a second to import, and only these data need it

    data = load_digits()
    images = torch.from_numpy(data.data / 8.0 - 1.0).float().reshape(-1, 1, 8, 8)  # from 0..16
    labels = torch.from_numpy(data.target).long()
    return Dataset(
        name="digits",
        train=images[:TRAINING_DIGITS],
        held_out=images[TRAINING_DIGITS:],
        train_labels=labels[:TRAINING_DIGITS],
        held_out_labels=labels[TRAINING_DIGITS:],
        split=f"the first {TRAINING_DIGITS:,} train, the other 297 are held out",
        source="Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), the test set, by scikit-learn",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        value_range=RANGE,
    )


def mnist() -> Dataset:
    """70,000 handwritten digits, padded from 28 x 28 to 32 x 32 pixels."""

    def part(prefix: str) -> tuple[Tensor, Tensor]:
        images = read_idx(data_file("mnist", f"{prefix}-images-idx3-ubyte.gz", source=MNIST))
        labels = read_idx(data_file("mnist", f"{prefix}-labels-idx1-ubyte.gz", source=MNIST))
        return scaled(np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]), torch.from_numpy(labels).long()

    (train, train_labels), (held_out, held_out_labels) = part("train"), part("t10k")
    return Dataset(
        name="mnist",
        train=train,
        held_out=held_out,
        train_labels=train_labels,
        held_out_labels=held_out_labels,
        split="as published: 60,000 train, 10,000 are held out",
        source=MNIST,
        licence="none stated by its authors",
        value_range=RANGE,
    )


def cifar10() -> Dataset:
    """20,000 photographs of ten classes, 32 x 32 pixels in colour."""

    def part(name: str) -> tuple[Tensor, Tensor]:
        path = Path(data_file("cifar10", name, source=CIFAR10))
        images, labels = read_npz(path, "x"), read_npz(path, "y")
        return scaled(images.transpose(0, 3, 1, 2)), torch.from_numpy(labels).long()

    (train, train_labels) = part("cifar10_train_16k.npz")
    (held_out, held_out_labels) = part("cifar10_test_4k.npz")
    return Dataset(
        name="cifar10",
        train=train,
        held_out=held_out,
        train_labels=train_labels,
        held_out_labels=held_out_labels,
        split="16,000 of the published training set, 4,000 of the test set are held out, classes in equal shares",
        source=CIFAR10,
        licence="none stated by its authors",
        value_range=RANGE,
    )


def galaxies() -> Dataset:
    """8,861 grey images of galaxies, 32 x 32 pixels."""
    path = data_file("galaxies_sdss", "gray32.npz", source=GALAXIES)
    return Dataset(
        name="galaxies",
        train=scaled(read_npz(path, "train")[:, None]),
        held_out=scaled(read_npz(path, "test")[:, None]),
        split="as stored: 8,000 train, 861 are held out",
        source=GALAXIES,
        licence="none stated with the cut-outs",
        value_range=RANGE,
    )
