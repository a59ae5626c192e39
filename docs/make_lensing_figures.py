"""Draws the figures of the Euclid lens and of the deconvolved Hubble stamp, from real data under $RTB_DATA.

    python docs/make_lensing_figures.py [--fit FILE]

Both posteriors are exact, so nothing is trained. `--fit` fits the Euclid lens from two starts first (a minute), and
writes the better fit to FILE instead of drawing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs import InverseProblem, make_problem
from envs.data import data_file
from envs.problems.lens_fit import fit_lens
from envs.problems.lensing_euclid import LENS, SOURCE, VIS_FIT, Band, read_band
from evaluation.figures.picture import finish, render, styled

FIGURES = Path(__file__).parent / "figures"
STARTS = ((0.8, 0.1, 0.1), (0.8, 0.3, 0.2))  # Einstein radius, and x and y of the source, arcsec
NOISE_SCALE = 0.63  # with which the residuals of the Euclid lens have a mean square of one
HST = {
    "prior": "galaxies-smooth",
    "measured": "hst",
    "psf": "hst",
    "noise": "gaussian",
    "pixels": 32,
    "binning": 2,
    "unit": 120.0,
    "num_steps": 3,
}


def band() -> Band:
    """The middle of the band VIS."""
    path = data_file("lens_euclid_q1", LENS, source=SOURCE)
    mask = data_file("lens_euclid_q1", "mask_extra_galaxies.fits", source=SOURCE)
    return read_band(path, "VIS", mask, 40, 2, 16, 0.96, (VIS_FIT.source[0], VIS_FIT.source[1]))


def fit(file: Path) -> None:
    """Fits the lens, and writes the better of the fits."""
    found = band()
    fits = [fit_lens(found.camera, found.image, found.noise_std, found.seen, start) for start in STARTS]
    min(fits, key=lambda each: each.reduced_chi2).write(file)


def draws(problem: InverseProblem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean, standard deviation, a draw) of x under the exact posterior, [n, n] each."""
    exact = problem.exact[0]
    drawn = exact.sample(1, torch.Generator().manual_seed(0))
    return exact.mean[0], exact.variance.sqrt()[0], drawn[0, 0]


def panels(figure: Figure, shown: dict[str, tuple[NDArray[np.float64], str, float, float]]) -> None:
    """Images in two rows, each with its colours and their range."""
    for axes, (title, (image, colours, low, high)) in zip(figure.subplots(2, 3).flat, shown.items(), strict=True):
        drawn = axes.imshow(image, cmap=colours, vmin=low, vmax=high, origin="lower", interpolation="nearest")
        figure.colorbar(drawn, ax=axes, shrink=0.8)
        axes.set(title=title, xticks=[], yticks=[])
        finish(axes)


@styled()
def euclid() -> None:
    """The lens, what is left of it, and its source."""
    options = {"prior": "galaxies-smooth", "noise_scale": NOISE_SCALE, "num_steps": 3}
    problem, found = make_problem("lensing-euclid", options), band()
    mean, spread, _ = draws(problem)
    y = problem.measurements[0]
    model = problem.measurement_image(problem.likelihood.operator(mean[None, None])[0].float()).numpy()
    data = problem.measurement_image(y).numpy()
    residual = problem.measurement_image(problem.likelihood.standardised(mean[None, None], y[None])[0]).numpy()
    top = float(np.nanmax(model))
    shown = {
        "Euclid VIS, 4 x 4 arcsec": (np.arcsinh(found.image.numpy() / 0.02), "magma", 0.0, 2.5),
        "less the lens's light": (data, "magma", -0.1 * top, top),
        "lensed source": (model, "magma", -0.1 * top, top),
        "residuals / noise": (residual, "RdBu_r", -4.0, 4.0),
        "source, 0.96 arcsec: mean": (mean.numpy(), "magma", 0.0, float(mean.max())),
        "standard deviation": (spread.numpy(), "viridis", 0.0, float(spread.max())),
    }
    figure = Figure(figsize=(9.0, 5.6))
    panels(figure, shown)
    (FIGURES / "lensing_euclid.png").write_bytes(render(figure, "lensing_euclid", "", "").png)
    sys.stdout.write(
        f"euclid: log evidence {problem.exact[0].log_partition:.1f}, mean square {np.nanmean(residual**2):.3f}\n"
    )


@styled()
def hubble() -> None:
    """The stamp, and what it is without the blur."""
    problem = make_problem("psf-deconvolution", HST)
    mean, spread, drawn = draws(problem)
    y = problem.measurements[0]
    residual = problem.likelihood.standardised(mean[None, None], y[None].double())[0, 0].numpy()
    top = float(mean.max())
    shown = {
        "Hubble, 1.9 x 1.9 arcsec": (y[0].numpy(), "magma", 0.0, float(y.max())),
        "deconvolved: mean": (mean.numpy(), "magma", 0.0, top),
        "one sample": (drawn.numpy(), "magma", 0.0, top),
        "standard deviation": (spread.numpy(), "viridis", 0.0, float(spread.max())),
        "residuals / noise": (residual, "RdBu_r", -4.0, 4.0),
        "point spread (root)": (problem.likelihood.operator.kernel.sqrt().numpy(), "magma", 0.0, None),
    }
    figure = Figure(figsize=(9.0, 5.6))
    panels(figure, shown)
    (FIGURES / "hst_deconvolution.png").write_bytes(render(figure, "hst_deconvolution", "", "").png)
    sys.stdout.write(
        f"hst: log evidence {problem.exact[0].log_partition:.1f}, mean square {np.mean(residual**2):.3f}\n"
    )


def main() -> None:
    """Draws both, or fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=Path)
    known = parser.parse_args()
    torch.set_num_threads(1)
    if known.fit is not None:
        fit(known.fit)
        return
    euclid()
    hubble()


if __name__ == "__main__":
    main()
