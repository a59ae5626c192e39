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
from envs.data.cluster_profiles import knots
from envs.data.xray_spectra import energy_edges
from evaluation.figures.images import colour_last, mosaic, pixel_limits, show
from evaluation.figures.picture import LEARNED, PRIOR, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
NUM_STEPS = 100
SIDE = 6  # images per row and column
STATES = 4_000
LINES = 12  # profiles, spectra, or states of a ring
FIRST, OTHERS = {"color": LEARNED, "linewidth": 1.6}, {"color": PRIOR, "linewidth": 0.6, "zorder": 1}


def draw(axes: Axes, name: str) -> None:
    """Samples of the prior called `name`: images, a cloud, states of a ring around the clock, spectra or profiles."""
    image = len(read_prior(name).event_shape) == 3
    count = SIDE**2 if image else STATES if name == "lorenz63" else LINES
    samples = load_prior(name, NUM_STEPS).sample(count, torch.Generator().manual_seed(0)).numpy()
    if name in ("spectra", "clusters"):
        lines(axes, name, samples)
        return
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
            axes.plot(radius * np.cos(angle), radius * np.sin(angle), **(OTHERS if row else FIRST))
    axes.set_aspect("equal")
    axes.set_title(name)
    axes.set_anchor("N")
    finish(axes, ticks=False)


def lines(axes: Axes, name: str, samples: np.ndarray) -> None:
    """Spectra [N, 24] against energy, or the pressure and (dashed) density of clusters [N, 2, 8] against radius."""
    if name == "spectra":
        edges = energy_edges(0.5, 7.0, samples.shape[1])
        place, unit, value = np.sqrt(edges[1:] * edges[:-1]), "energy, keV", "log flux, of a power law's"
        ticks = [0.5, 1.0, 2.0, 5.0]
    else:
        place, unit, value = knots(samples.shape[2]), "radius, Mpc", "log pressure and density"
        ticks = [0.05, 0.1, 0.3, 1.0, 2.0]
    for row, sample in enumerate(samples):
        parts = [sample] if sample.ndim == 1 else [sample[1], sample[0]]
        for part, style in zip(parts, ("-", "--"), strict=False):
            axes.plot(place, part, linestyle=style, **(OTHERS if row else FIRST))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(unit)
    axes.set_ylabel(value)
    axes.set_title(name)
    finish(axes)


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
