"""Draws the figure of performance.md: where an update of the learner spends its time.

python docs/make_performance_figure.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.learner_share import Profile, profile
from evaluation.figures.picture import EXACT, LEARNED, LOWER, UPPER, finish, legend, render, styled

FIGURES = Path(__file__).parent / "figures"
BARS = {
    "U-Net, 5 of 20 steps": ("unet", True),
    "U-Net, all steps": ("unet", False),
    "MLP, 25 of 100 steps": ("mlp", True),
    "MLP, all steps": ("mlp", False),
}
PARTS = {
    "forward, to score": ("scoring", LOWER),
    "forward, with graph": ("forward", LEARNED),
    "backward": ("backward", UPPER),
    "all else": ("rest", EXACT),
}


@styled()
def draw(profiles: dict[str, Profile]) -> None:
    """Shares of the time of an update, a bar each."""
    figure = Figure(figsize=(8.0, 2.8))
    axes = figure.subplots()
    for row, measured in enumerate(profiles.values()):
        total, left = sum(getattr(measured, part) for part, _ in PARTS.values()), 0.0
        for name, (part, colour) in PARTS.items():
            share = 100 * getattr(measured, part) / total
            axes.barh(row, share, left=left, color=colour, label=name if row == 0 else None)
            left += share
        axes.text(101, row, f"{1e3 * total:,.0f} ms", va="center")
    axes.set(xlabel="share of an update, %", xlim=(0, 100))
    finish(axes)
    axes.set_yticks(range(len(profiles)), list(profiles))
    legend(figure, axes)
    (FIGURES / "update.png").write_bytes(render(figure, "update", "", "").png)


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw({label: profile(name, subset=subset) for label, (name, subset) in BARS.items()})
