"""The chain of a prior: its levels and transitions, and what its finite number of steps costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from evaluation.figures.picture import EXACT, LEARNED, LOWER, UPPER, WIDTH, Picture, finish, number, render, styled

__all__ = ["discretisation_picture", "schedule_picture"]


@styled()
def schedule_picture(
    alpha: np.ndarray, sigma: np.ndarray, std: np.ndarray, uncertainty: np.ndarray, data_std: float
) -> Picture:
    """Levels `alpha`, `sigma` [T+1] of a chain; `std` and error of x^, `uncertainty`, of its transitions [T]."""
    steps = len(std)
    figure = Figure(figsize=(WIDTH, 3.6))
    left, right = figure.subplots(1, 2)
    left.plot(range(steps + 1), alpha, color=LEARNED, label="signal α")
    left.plot(range(steps + 1), sigma / data_std, color=UPPER, label="noise σ")
    left.set_title("levels")
    right.plot(range(steps), uncertainty / data_std, color=EXACT, label="error of the estimate of x")
    right.plot(range(steps), std / data_std, color=LOWER, label="noise of the transition")
    right.set_title("transitions")
    right.set_yscale("log")
    for axes, values in ((left, sigma / data_std), (right, std)):
        axes.set_xlabel(f"step, of {steps}")
        axes.legend(loc="best")
        if float(np.max(values)) > 100 and axes is left:
            axes.set_yscale("symlog", linthresh=1.0)
        finish(axes)
    left.set_ylabel("α, and σ in standard deviations of x")
    right.set_ylabel("standard deviations of x")
    caption = f"The {steps} steps of a chain from noise to x: its levels, and the noise that its transitions add."
    return render(figure, "schedule", "Schedule", caption)


@styled()
def discretisation_picture(
    steps: Sequence[int], errors: Sequence[float], left: Sequence[float], bound: float, smallest: int | None
) -> Picture:
    """`errors` (nats per dimension) and noise `left` (standard deviations of x) of chains of as many `steps`."""
    figure = Figure(figsize=(WIDTH, 3.6))
    first, second = figure.subplots(1, 2)
    first.plot(steps, np.maximum(errors, 1e-12), color=LEARNED, marker="o", markersize=4)
    first.axhline(bound, color=EXACT, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    if smallest is not None:
        first.plot([smallest], [bound], color=UPPER, marker="D", markersize=6, linestyle="")
        first.annotate(f"T = {smallest:,}", (smallest, bound), xytext=(7, 6), textcoords="offset points")
    first.set_ylabel("discretisation error (nats per dimension)")
    second.plot(steps, left, color=LOWER, marker="o", markersize=4)
    second.set_ylabel("noise left in x (standard deviations)")
    for axes in (first, second):
        axes.set_xlabel("number of steps T")
        axes.set_xscale("log")
        axes.set_yscale("log")
        finish(axes)
    caption = (
        f"What a finite number of steps costs; the dashed line is the bound of {number(bound, 3)} nats per dimension."
    )
    return render(figure, "discretisation", "Discretisation error", caption)
