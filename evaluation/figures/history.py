"""How a run went: the bounds on log Z against time, and the loss against updates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.figures.picture import (
    EXACT,
    LEARNED,
    LOWER,
    UPPER,
    WIDTH,
    Picture,
    finish,
    legend,
    number,
    render,
    styled,
)

__all__ = ["History", "bounds_picture", "loss_picture"]

History = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Metric -> (steps [N], seconds [N], values [N]); a value may be nan."""

SERIES = (
    ("eval/eubo", "EUBO, upper bound", UPPER),
    ("eval/iw_log_partition", "importance-weighted", LOWER),
    ("eval/elbo", "ELBO, lower bound", LEARNED),
)
SMOOTHING = 0.02  # width of the running median, as a fraction of the run


@styled()
def bounds_picture(history: History, exact_log_partition: float | None = None) -> Picture | None:
    """ELBO, IW and EUBO against seconds, exact log Z as a line; None if none of them was measured."""
    curves = [(label, colour, *_finite(history[key])) for key, label, colour in SERIES if key in history]
    curves = [curve for curve in curves if len(curve[4])]
    if not curves:
        return None
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.subplots()
    for label, colour, _, seconds, values in curves:
        markers = "o" if len(values) <= 40 else ""
        axes.plot(seconds, values, color=colour, label=label, marker=markers, markersize=3.5)
    if exact_log_partition is not None:
        axes.axhline(exact_log_partition, color=EXACT, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            f"exact log Z = {number(exact_log_partition)}",
            (1.0, exact_log_partition),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
        )
    _limit(axes, [curve[4] for curve in curves], exact_log_partition)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("log Z (nats)")
    axes.set_xlim(left=0)
    legend(figure, axes)
    finish(axes)
    caption = (
        "Bounds on the log evidence while training. ELBO and the importance-weighted value lie below it, up to noise; "
        "the EUBO, where an exact posterior gives it, above. They meet as the learned posterior becomes the exact one, "
        "up to the chain's finite number of steps."
    )
    return render(figure, "bounds", "Bounds on the evidence", caption)


@styled()
def loss_picture(history: History, key: str = "learner/loss", unit: str = "nats²") -> Picture | None:
    """The loss against updates, each value faint and the running median on top; None if it was not logged."""
    if key not in history:
        return None
    steps, _, values = _finite(history[key])
    if not len(values):
        return None
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    window = max(1, round(SMOOTHING * len(values)))
    if window > 1:
        axes.plot(steps, values, color=LEARNED, alpha=0.25, linewidth=0.9)
    axes.plot(steps, _running_median(values, window), color=LEARNED)
    if bool((values > 0).all()):
        axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel(f"loss ({unit})")
    axes.set_xlim(0, 1.01 * max(float(steps[-1]), 1.0))
    finish(axes)
    smooth = f", and the median over {window} of them" if window > 1 else ""
    return render(figure, "loss", "Loss", f"Training loss of every logged update{smooth}.")


def _finite(series: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, seconds, values = (np.asarray(part, np.float64) for part in series)
    keep = np.isfinite(values)
    return steps[keep], seconds[keep], values[keep]


def _limit(axes: Axes, curves: list[np.ndarray], exact: float | None) -> None:
    """Shows where the run ended, not the first values, which can lie thousands of nats away; says what is cut off."""
    late = np.concatenate([values[len(values) // 4 :] for values in curves])
    if exact is not None:
        late = np.append(late, exact)
    low, high = float(late.min()), float(late.max())
    margin = 0.12 * max(high - low, 0.5)
    axes.set_ylim(low - margin, high + margin)
    lowest = min(float(values.min()) for values in curves)
    highest = max(float(values.max()) for values in curves)
    cut = [f"{'down to' if value == lowest else 'up to'} {number(value, 0)}" for value in (lowest, highest)]
    seen = (lowest >= low - margin, highest <= high + margin)
    hidden = " and ".join(text for text, inside in zip(cut, seen, strict=True) if not inside)
    if hidden:
        axes.set_title(f"early values reach {hidden} nats, outside this view", fontsize=8.5, color="#5c646d")


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    """[N] median over a window centred on each value, shorter at the ends."""
    half = window // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
