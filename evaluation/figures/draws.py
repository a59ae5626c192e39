"""Draws of a prior beside the data that it was trained on: grids of images, or clouds and histograms of coordinates."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.figures.images import colour_last, mosaic, pixel_limits, show
from evaluation.figures.picture import EXACT, LEARNED, WIDTH, Picture, finish, flat, legend, render, styled

__all__ = ["draws_picture"]

SIDE = 8  # images per row and column
BINS = 60
MAX_POINTS = 2_000  # more hide the density instead of showing it


@styled()
def draws_picture(samples: np.ndarray, data: np.ndarray | None = None) -> Picture:
    """Draws of the prior `samples` [N, *D], and of the `data` [M, *D], where there are any.

    x of shape [C, H, W] with one channel or three are images.
    """
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        return _images(samples, data)
    return _vectors(flat(samples), None if data is None else flat(data))


def _images(samples: np.ndarray, data: np.ndarray | None) -> Picture:
    sets = [("prior", colour_last(samples))]
    if data is not None:
        sets.append(("data, held out", colour_last(data)))
    low, high = pixel_limits(sets[-1][1])
    side = min(SIDE, *(math.isqrt(len(images)) for _, images in sets))
    figure = Figure(figsize=(WIDTH * len(sets) / 2, WIDTH / 2 + 0.3))
    row = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, (name, images) in zip(row, sets, strict=True):
        show(axes, mosaic(images, side), low, high, name)
    return render(figure, "samples", "Samples", "Draws from the prior, none of them chosen, and held-out data.")


def _vectors(samples: np.ndarray, data: np.ndarray | None) -> Picture:
    """The plane of the first and the last coordinate, and the histogram of the first."""
    sets = [("prior", samples, LEARNED)]
    if data is not None:
        sets.insert(0, ("data, held out", data, EXACT))
    last = samples.shape[1]
    planes = len(sets) if last > 1 else 0
    figure = Figure(figsize=(WIDTH, WIDTH / (planes + 1) + 0.35))
    row = list(figure.subplots(1, planes + 1, squeeze=False)[0])
    reference = sets[0][1]
    low, high = reference.min(0), reference.max(0)
    margin = np.where(high > low, 0.08 * (high - low), 1.0)
    low, high = low - margin, high + margin
    for axes, (name, points, colour) in zip(row[:planes], sets, strict=False):
        axes.scatter(points[:MAX_POINTS, 0], points[:MAX_POINTS, -1], s=6, color=colour, alpha=0.4, linewidths=0)
        axes.set_title(name)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[-1], high[-1])
        axes.set_xlabel("$x_1$")
        axes.set_ylabel(f"$x_{{{last}}}$")
        finish(axes)
    _histogram(row[-1], sets, float(low[0]), float(high[0]))
    legend(figure, row[-1])
    caption = "Draws from the prior and held-out data: the first and the last coordinate, and the density of the first."
    return render(figure, "samples", "Samples", caption)


def _histogram(axes: Axes, sets: list[tuple[str, np.ndarray, str]], low: float, high: float) -> None:
    edges = np.linspace(low, high, BINS + 1)
    for name, points, colour in sets:
        axes.hist(points[:, 0], list(edges), density=True, histtype="step", color=colour, linewidth=1.6, label=name)
    axes.set_xlim(low, high)
    axes.set_xlabel("$x_1$")
    axes.set_ylabel("density")
    finish(axes)
