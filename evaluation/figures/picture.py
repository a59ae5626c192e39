"""The look of every figure, and a rendered figure with its name and caption.

Colours mean the same thing everywhere: dark grey is exact, blue is learned, light grey is the prior, red is the truth.
They are told apart by lightness too, for colour-blind readers and for print.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "EXACT",
    "LEARNED",
    "LOWER",
    "PRIOR",
    "TRUTH",
    "UPPER",
    "Picture",
    "finish",
    "flat",
    "legend",
    "number",
    "render",
    "styled",
]

EXACT = "#33383f"
LEARNED = "#1f6fb4"
PRIOR = "#a9b1ba"
TRUTH = "#c8323f"
LOWER = "#3a9d8f"  # importance-weighted bound
UPPER = "#d9772b"  # EUBO

_ORDER = ["data, held out", "prior", "exact", "learned", "truth"]

DPI = 144  # twice the density of the page, so that text stays sharp on dense screens
WIDTH = 9.0  # inches

_STYLE: Any = {  # matplotlib types its keys one by one
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelcolor": EXACT,
    "axes.edgecolor": "#8a929b",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.8,
    "xtick.color": "#5c646d",
    "ytick.color": "#5c646d",
    "text.color": EXACT,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A rendered figure."""

    name: str
    """File name without its ending."""
    title: str
    """Headline in the report."""
    caption: str
    """One or two sentences that say what is seen."""
    png: bytes
    """The image."""


@contextmanager
def styled() -> Iterator[None]:
    """The house style, without touching anyone else's; use as `@styled()` on a function that draws."""
    with matplotlib.rc_context(_STYLE):
        yield


def render(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """The picture of `figure`, as PNG."""
    buffer = io.BytesIO()
    # No software version or date inside: equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(name=name, title=title, caption=caption, png=buffer.getvalue())


def finish(axes: Axes, *, ticks: bool = True) -> None:
    """Short tick marks, or for images neither ticks nor frame."""
    if ticks:
        axes.tick_params(length=3)
        return
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def legend(figure: Figure, axes: Axes) -> None:
    """One row above the axes, where it cannot hide data, in the same order in every figure."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: (_ORDER + labels).index(labels[index]))
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="outside upper right",
        ncols=len(order),
    )


def number(value: float, digits: int = 2) -> str:
    """`value` with a true minus sign, as on the axes."""
    return f"{value:,.{digits}f}".replace("-", "−")


def flat(samples: np.ndarray) -> np.ndarray:
    """[N, D] float64 view of samples [N, *D]."""
    return np.asarray(samples, np.float64).reshape(len(samples), -1)
