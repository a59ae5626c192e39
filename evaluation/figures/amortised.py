"""One posterior at many measurements: its evidence against the exact one, and its calibration."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.amortised import AmortisedEvaluation
from evaluation.calibration import Calibration
from evaluation.figures.picture import EXACT, LEARNED, LOWER, PRIOR, WIDTH, Picture, finish, render, styled

__all__ = ["amortised_picture"]


@styled()
def amortised_picture(each: AmortisedEvaluation | None, calibration: Calibration | None) -> Picture | None:
    """ELBO and IW against exact log Z by measurement, and the coverage; None if neither was judged."""
    evidence = each is not None and bool(np.isfinite(each.exact_log_partition).all())
    if not evidence and calibration is None:
        return None
    figure = Figure(figsize=(WIDTH if evidence and calibration else WIDTH / 2, 4.0))
    panels = list(np.atleast_1d(figure.subplots(1, evidence + (calibration is not None))))
    captions = []
    if each is not None and evidence:
        _evidence(panels.pop(0), each)
        captions.append("each point is one measurement; the ELBO is below the line on average, and IW near it")
    if calibration is not None:
        _coverage(panels.pop(0), calibration)
        captions.append(
            f"coverage of {calibration.pairs} simulated pairs, within the band in 19 of 20 tests of exact posteriors"
        )
    caption = "; ".join(captions)
    return render(figure, "measurements", "At all measurements", f"{caption[0].upper()}{caption[1:]}.")


def _evidence(axes: Axes, each: AmortisedEvaluation) -> None:
    exact = each.exact_log_partition
    ends = np.array([exact.min(), exact.max()])
    axes.plot(ends, ends, color=EXACT, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.scatter(exact, each.elbo, s=9, color=LEARNED, label="ELBO", linewidths=0)
    axes.scatter(exact, each.iw_log_partition, s=9, color=LOWER, label="importance-weighted", linewidths=0)
    axes.set_xlabel("exact log Z (nats)")
    axes.set_ylabel("bound (nats)")
    axes.legend(loc="lower right", frameon=False)
    finish(axes)


def _coverage(axes: Axes, calibration: Calibration) -> None:
    level, coverage = (
        np.concatenate([[0.0], value.numpy(), [1.0]]) for value in (calibration.level, calibration.coverage)
    )
    band = calibration.by_chance
    axes.fill_between(level, (level - band).clip(0), (level + band).clip(max=1), color=PRIOR, alpha=0.4, linewidth=0)
    axes.plot([0, 1], [0, 1], color=EXACT, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.plot(level, coverage, color=LEARNED)
    axes.set_xlabel("credibility level")
    axes.set_ylabel("expected coverage")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    finish(axes)
