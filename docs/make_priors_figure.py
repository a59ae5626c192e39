"""Draws the figure of priors.md: samples of the networks that ship as priors, none of them chosen.

python docs/make_priors_figure.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion.stored_prior import load_prior, prior_names, read_prior
from evaluation.figures.images import colour_last, mosaic, pixel_limits, show
from evaluation.figures.picture import LEARNED, PRIOR, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
NUM_STEPS = 100
SIDE = 6  # images per row and column
STATES = 4_000


def draw(axes: Axes, name: str) -> None:
    """Samples of the prior called `name`: a grid of images, or a cloud, or states of a ring around the clock."""
    image = name not in ("lorenz63", "lorenz96")
    count = SIDE**2 if image else STATES if name == "lorenz63" else 12
    samples = load_prior(name, NUM_STEPS).sample(count, torch.Generator().manual_seed(0)).numpy()
    if image:
        images = colour_last(samples)
        show(axes, mosaic(images, SIDE), *pixel_limits(images), name)
        return
    if name == "lorenz63":
        axes.scatter(samples[:, 0], samples[:, 2], s=2.5, c=samples[:, 1], cmap="viridis", linewidths=0, alpha=0.8)
    else:
        angle = np.linspace(0, 2 * np.pi, samples.shape[1] + 1)
        for row, state in enumerate(samples):
            radius = 22 + np.append(state, state[0])
            look = {"color": LEARNED, "linewidth": 1.6} if row == 0 else {"color": PRIOR, "linewidth": 0.6, "zorder": 1}
            axes.plot(radius * np.cos(angle), radius * np.sin(angle), **look)
    axes.set_aspect("equal")
    axes.set_title(name)
    axes.set_anchor("N")
    finish(axes, ticks=False)


@styled()
def main() -> None:
    """Writes docs/figures/priors.png."""
    names = [name for name in prior_names() if read_prior(name).denoiser["kind"] == "network"]
    columns = 2
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(7.2, 3.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        draw(axes, name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    (FIGURES / "priors.png").write_bytes(render(figure, "priors", "Priors", "").png)


if __name__ == "__main__":
    main()
