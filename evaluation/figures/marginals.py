"""Problems that are not images: class probabilities, clouds of points in the plane, means and spreads of a vector."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from evaluation.figures.picture import (
    EXACT,
    LEARNED,
    PRIOR,
    TRUTH,
    WIDTH,
    Picture,
    finish,
    flat,
    legend,
    render,
    styled,
)

__all__ = ["class_picture", "plane_picture", "vector_picture"]

MAX_POINTS = 2_000  # more hide the density instead of showing it
MAX_COORDINATES = 64
MANY_CLASSES = 14


@styled()
def class_picture(
    names: tuple[str, ...], learned: np.ndarray, exact: np.ndarray | None = None, truth: int | None = None
) -> Picture:
    """Posterior class probabilities [C], learned beside exact; `truth` is the class of the true x."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    place = np.arange(len(names))
    width = 0.38 if exact is not None else 0.6
    if exact is not None:
        axes.bar(place - 0.5 * width - 0.01, exact, width, color=EXACT, label="exact")
    shift = 0.5 * width + 0.01 if exact is not None else 0.0
    axes.bar(place + shift, learned, width, color=LEARNED, label="learned")
    many = len(names) > MANY_CLASSES or max(map(len, names)) > 8
    axes.set_xticks(place, names, rotation=45 if many else 0, ha="right" if many else "center", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=8.5 if many else 9.5)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.6, len(names) - 0.4)
    top = max(float(np.max(learned)), 0.0 if exact is None else float(np.max(exact)))
    axes.set_ylim(0, 1.16 * top)
    axes.set_ylabel("probability")
    if truth is not None:
        height = max(float(learned[truth]), 0.0 if exact is None else float(exact[truth]))
        axes.plot(truth, height + 0.06 * top, marker="v", color=TRUTH, markersize=7, linestyle="", label="truth")
        axes.get_xticklabels()[truth].set_color(TRUTH)
        axes.get_xticklabels()[truth].set_fontweight("bold")
    legend(figure, axes)
    finish(axes)
    axes.tick_params(axis="x", length=0)
    caption = "Probability of each class under the posterior."
    if truth is not None:
        caption += " The triangle marks the class of the x that was measured."
    return render(figure, "classes", "Class posterior", caption)


@styled()
def plane_picture(prior: np.ndarray, learned: np.ndarray, exact: np.ndarray | None = None) -> Picture:
    """Samples [N, 2] of prior, exact posterior and learned posterior in equal axes."""
    panels = [("prior", prior, PRIOR), ("exact posterior", exact, EXACT), ("learned posterior", learned, LEARNED)]
    shown = [(name, flat(points)[:MAX_POINTS], colour) for name, points, colour in panels if points is not None]
    figure = Figure(figsize=(WIDTH, WIDTH / len(shown) + 0.35))
    everything = np.concatenate([points for _, points, _ in shown])
    low, high = np.quantile(everything, 0.001, axis=0), np.quantile(everything, 0.999, axis=0)
    centre, half = 0.5 * (low + high), 0.56 * float((high - low).max())
    row = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, points, colour) in zip(row, shown, strict=True):
        axes.scatter(points[:, 0], points[:, 1], s=7, color=colour, alpha=0.35, linewidths=0, rasterized=True)
        axes.set_title(name)
        axes.set_xlim(centre[0] - half, centre[0] + half)
        axes.set_ylim(centre[1] - half, centre[1] + half)
        axes.set_aspect("equal")
        axes.set_xlabel("$x_1$")
        finish(axes)
    row[0].set_ylabel("$x_2$")
    caption = f"Samples in the plane, at most {MAX_POINTS:,} of each, on the same axes."
    return render(figure, "samples", "Samples", caption)


@styled()
def vector_picture(
    prior: np.ndarray, learned: np.ndarray, exact: np.ndarray | None = None, truth: np.ndarray | None = None
) -> Picture:
    """Mean and standard deviation of every coordinate of samples [N, D]; `truth` [D]."""
    sets = [("exact", exact, EXACT, "o"), ("learned", learned, LEARNED, "s")]
    drawn = [(name, flat(points), colour, mark) for name, points, colour, mark in sets if points is not None]
    dim = min(flat(learned).shape[1], MAX_COORDINATES)
    index = np.arange(1, dim + 1)
    background = flat(prior)[:, :dim]
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.subplots()
    axes.use_sticky_edges = False  # bars would otherwise end the axis
    mean, std = background.mean(0), background.std(0)
    axes.bar(index, 2 * std, 0.72, bottom=mean - std, color=PRIOR, alpha=0.3, label="prior")
    for number, (name, points, colour, mark) in enumerate(drawn):
        place = index + (0.3 * (number - 0.5) if len(drawn) > 1 else 0.0)
        axes.errorbar(
            place,
            points[:, :dim].mean(0),
            points[:, :dim].std(0),
            fmt=mark,
            color=colour,
            markersize=4 if dim <= 32 else 2.5,
            elinewidth=1.6 if dim <= 32 else 1.0,
            label=name,
        )
    if truth is not None:
        values = np.asarray(truth, np.float64).ravel()[:dim]
        axes.hlines(values, index - 0.36, index + 0.36, color=TRUTH, linewidth=1.6, label="truth")
    axes.set_xlabel("coordinate")
    axes.set_ylabel("x, mean ± standard deviation")
    axes.set_xlim(0.4, dim + 0.6)
    if dim <= 20:
        axes.set_xticks(index)
    axes.grid(visible=False, axis="x")
    legend(figure, axes)
    finish(axes)
    total = flat(learned).shape[1]
    caption = "Mean and standard deviation of every coordinate"
    caption += "." if dim == total else f", the first {dim} of {total}."
    return render(figure, "marginals", "Coordinates", caption)
