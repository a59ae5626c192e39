"""Draws the figure of instruments.md: the disk AS 209 under a prior that fits it and one that does not.

    python docs/make_radio_figures.py

The posteriors are exact; the data are read from $RTB_DATA. AS 209 lies at an inclination of 34.97 degrees, its major
axis at a position angle of 85.76 degrees east of north (Huang et al. 2018, ApJ 869, L42). The published profile is that
of the image by CLEAN, of a beam of 0.04 arcsec, far finer than the pixels here, which average it.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from envs import make_problem
from envs.data import data_file
from envs.operators.visibilities import ARCSECOND
from envs.problems.radio.observation import FRANK, observation
from envs.problems.radio.sky import FILLED
from evaluation.figures.picture import LEARNED, TRUTH, UPPER, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
INCLINATION, POSITION_ANGLE = math.radians(34.97), math.radians(85.76)
SIZE, DRAWS = 32, 200
RINGS = np.arange(0.0, 1.75, 0.125)
"""Edges of the rings that are averaged, arcsec in the plane of the disk."""


def radii(size: int, field: float) -> np.ndarray:
    """[H W] distance of each pixel from the star in the plane of the disk, arcsec."""
    line = (size // 2 - np.arange(size)) * field / size
    north, east = (axis.ravel() for axis in np.meshgrid(line, line, indexing="ij"))
    along = east * math.sin(POSITION_ANGLE) + north * math.cos(POSITION_ANGLE)
    across = (east * math.cos(POSITION_ANGLE) - north * math.sin(POSITION_ANGLE)) / math.cos(INCLINATION)
    return np.hypot(along, across)


def profile(draws: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """[N, rings] mean brightness of images [N, H W] in each ring."""
    ring = np.digitize(radius, RINGS) - 1
    return np.stack([draws[:, ring == index].mean(1) for index in range(len(RINGS) - 1)], 1)


def posterior(prior: str) -> tuple[np.ndarray, float, float]:
    """Draws [N, H W] in Jy/sr, log Z in nats and the reduced chi square."""
    problem = make_problem("radio-uv", {"data": "as209", "prior": prior, "size": SIZE, "num_steps": 2})
    drawn = problem.exact[0].sample(DRAWS, torch.Generator().manual_seed(0))
    seen = problem.measurements.expand(DRAWS, *problem.measurements.shape[1:])
    square = float(problem.likelihood.standardised(drawn.float(), seen).double().square().mean())
    known = observation("as209", None, None, "refuse")
    unit = known.flux / (FILLED * SIZE * SIZE) / known.pixel_size(SIZE) ** 2  # Jy/sr for x = 1
    return unit * drawn.flatten(1).numpy(), problem.exact[0].log_partition, square


@styled()
def disk() -> None:
    """Mean and spread under both priors, and the profiles against the published one."""
    known = observation("as209", None, None, "refuse")
    radius = radii(SIZE, known.field_of_view / ARCSECOND)
    published = np.loadtxt(data_file("alma_frank", "AS209_clean_profile.txt", source=FRANK))
    middle = (RINGS[1:] + RINGS[:-1]) / 2
    weight, place = published[:, 0], np.digitize(published[:, 0], RINGS) - 1  # a ring's area grows with its radius
    truth = np.array([np.average(published[place == i, 1], weights=weight[place == i]) for i in range(len(middle))])
    figure = Figure(figsize=(9.0, 3.0))
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    for prior, colour, axes in (("shapes", LEARNED, panels[0]), ("galaxies", UPPER, panels[2])):
        draws, log_partition, square = posterior(prior)
        found = profile(draws, radius)
        mean, std = found.mean(0) / 1e10, found.std(0) / 1e10
        inside = np.abs(mean - truth / 1e10) < 2 * std
        sys.stdout.write(
            f"{prior}: log Z {log_partition:.1f}, chi2 {square:.2f}, rings within two standard deviations of the "
            f"published profile {inside.sum()} of {len(inside)}, brightness {mean.round(2)} +- {std.round(2)}\n"
        )
        panels[3].fill_between(middle, mean - 2 * std, mean + 2 * std, color=colour, alpha=0.3, linewidth=0)
        panels[3].plot(middle, mean, color=colour, label=prior)
        most = float(draws.mean(0).max())
        axes.imshow(draws.mean(0).reshape(SIZE, SIZE), cmap="magma", vmin=0, vmax=most)
        axes.set_title(f"mean, {prior}")
        finish(axes, ticks=False)
        if prior == "shapes":
            panels[1].imshow(draws.std(0).reshape(SIZE, SIZE), cmap="magma", vmin=0, vmax=most / 4)
            panels[1].set_title("std. deviation × 4")
            finish(panels[1], ticks=False)
    sys.stdout.write(f"published: {(truth / 1e10).round(2)}\n")
    panels[3].plot(middle, truth / 1e10, color=TRUTH, linestyle="--", label="published")
    panels[3].set(title="profile, 10¹⁰ Jy/sr", xlabel="radius, arcsec", xlim=(0, RINGS[-1]))
    panels[3].legend()
    finish(panels[3])
    (FIGURES / "radio_as209.png").write_bytes(render(figure, "radio_as209", "", "").png)


def main() -> None:
    """Draws it."""
    torch.set_num_threads(1)
    disk()


if __name__ == "__main__":
    main()
