"""Image problems: samples beside the measurement and the truth, and maps of the pixels' mean and standard deviation."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from evaluation.figures.picture import WIDTH, Picture, finish, render, styled

__all__ = ["colour_last", "deviation", "image_picture", "mosaic", "pixel_limits", "show"]

GRID = 4  # samples per row and column


@styled()
def image_picture(
    prior: np.ndarray,
    learned: np.ndarray,
    exact: np.ndarray | None = None,
    measurement: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> Picture:
    """Grids of samples [N, H, W], or [N, H, W, 3] in colour, over maps of their mean and standard deviation.

    `measurement` [H, W] is hatched where it is NaN, that is where nothing was seen; `truth` is [H, W]; either may be in
    colour too.
    """
    figure = Figure(figsize=(WIDTH, 5.6 if exact is not None else 5.2))
    halves = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1.0))
    top, bottom = halves[:, 0]
    low, high = pixel_limits(*(image for image in (truth, exact, learned) if image is not None))
    own = None if measurement is None else pixel_limits(measurement)
    if own is not None and _comparable(own, (low, high)):
        own = None
    _samples(top, prior, learned, exact, measurement, truth, low, high, own)
    _maps(bottom, learned, exact, low, high)
    caption = (
        "Draws from the prior, what was measured (hatched where nothing was seen), and draws from the posterior. "
        "Below, the mean and the standard deviation of every pixel."
    )
    if own is not None:  # counts, say, of an x that is a density
        caption += f" The measurement is shown from {own[0]:.3g} to {own[1]:.3g}."
    return render(figure, "samples", "Samples", caption)


def _samples(
    part: SubFigure,
    prior: np.ndarray,
    learned: np.ndarray,
    exact: np.ndarray | None,
    measurement: np.ndarray | None,
    truth: np.ndarray | None,
    low: float,
    high: float,
    own: tuple[float, float] | None,
) -> None:
    singles = [(name, image) for name, image in (("measurement", measurement), ("truth", truth)) if image is not None]
    grids = [("prior", prior), ("exact posterior", exact), ("learned posterior", learned)]
    grids = [(name, images) for name, images in grids if images is not None]
    ratios = [1.0] + [0.48] * bool(singles) + [1.0] * (len(grids) - 1)
    columns = part.add_gridspec(1, len(ratios), width_ratios=ratios)
    places = [0, *range(len(ratios) - len(grids) + 1, len(ratios))]
    for place, (name, images) in zip(places, grids, strict=True):
        assert images is not None
        axes = part.add_subplot(columns[place])
        show(axes, mosaic(images, min(GRID, math.isqrt(len(images)))), low, high, name)
    if singles:
        rows = columns[1].subgridspec(len(singles), 1)
        for row, (name, image) in enumerate(singles):
            least, most = own if own is not None and name == "measurement" else (low, high)
            show(part.add_subplot(rows[row]), image, least, most, name, hatched=True)


def _maps(part: SubFigure, learned: np.ndarray, exact: np.ndarray | None, low: float, high: float) -> None:
    named = [("learned", learned)] if exact is None else [("exact", exact), ("learned", learned)]
    deviations = [deviation(images) for _, images in named]
    spread = float(max(np.nanquantile(each, 0.995) for each in deviations))
    axes = part.subplots(1, 2 * len(named), squeeze=False)[0]
    count = len(named)
    for column, (name, images) in enumerate(named):
        mean = show(axes[column], images.mean(0), low, high, f"mean, {name}")
        std = show(axes[count + column], deviations[column], 0.0, spread, f"std. deviation, {name}", colours="magma")
    bars = [(std, axes[count:])] if learned.ndim == 4 else [(mean, axes[:count]), (std, axes[count:])]  # not of colours
    for image, panels in bars:
        bar = part.colorbar(image, ax=list(panels), shrink=0.8, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8.5)


def show(
    axes: Axes, image: np.ndarray, low: float, high: float, title: str, colours: str = "gray", hatched: bool = False
) -> AxesImage:
    """`image` [H, W], or [H, W, 3] in colour, in pixels as they are; NaN is hatched, or left white."""
    if hatched and np.isnan(image).any():
        box = Rectangle((0, 0), 1, 1, transform=axes.transAxes, hatch="////", facecolor="#f1f3f5", edgecolor="#a9b1ba")
        box.set(linewidth=0, zorder=-1)  # images are drawn before patches otherwise
        axes.add_patch(box)
    shown = np.ma.masked_invalid(image) if image.ndim == 2 else _red_green_blue(image, low, high)
    drawn = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title)
    axes.set_anchor("N")  # titles of a row stay on one line
    finish(axes, ticks=False)
    return drawn


def _red_green_blue(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """[H, W, 4] colours and opacity of `image` [H, W, 3], clear where it is NaN."""
    seen = np.isfinite(image).all(-1, keepdims=True)
    scaled = np.clip((np.where(seen, image, low) - low) / (high - low), 0.0, 1.0)
    return np.concatenate([scaled, seen.astype(scaled.dtype)], axis=-1)


def deviation(images: np.ndarray) -> np.ndarray:
    """[H, W] standard deviation of images [N, H, W, ...], the root mean square over their colours."""
    variance = images.var(0)
    return np.sqrt(variance if variance.ndim == 2 else variance.mean(-1))


def colour_last(images: np.ndarray) -> np.ndarray:
    """[..., H, W] of grey images [..., 1, H, W], and [..., H, W, 3] of those in colour, [..., 3, H, W]."""
    return images[..., 0, :, :] if images.shape[-3] == 1 else np.moveaxis(images, -3, -1)


def pixel_limits(*images: np.ndarray) -> tuple[float, float]:
    """Grey levels that leave out the last percent at both ends."""
    values = np.concatenate([image.ravel() for image in images])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, (0.01, 0.99)) if len(values) else (0.0, 1.0)
    return float(low), float(high)


def _comparable(limits: tuple[float, float], reference: tuple[float, float]) -> bool:
    """Whether one grey scale can show both: it need not be more than twice as wide as either's own."""
    together = max(limits[1], reference[1]) - min(limits[0], reference[0])
    return together <= 2 * min(limits[1] - limits[0], reference[1] - reference[0])


def mosaic(images: np.ndarray, side: int) -> np.ndarray:
    """The first images [N, H, W, ...] as a grid of `side` times `side`, NaN between them."""
    height, width = images.shape[1:3]
    gap = max(1, round(0.05 * max(height, width)))
    canvas = np.full((side * (height + gap) - gap, side * (width + gap) - gap, *images.shape[3:]), np.nan)
    for index, image in enumerate(images[: side * side]):
        row, column = divmod(index, side)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
