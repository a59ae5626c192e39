"""Draws the figures of instruments.md: the mass of the COSMOS field, and the profiles of a simulated cluster.

    python docs/make_map_figures.py

The posterior of the first is exact, that of the second by importance sampling, so nothing is trained. The shear of
COSMOS is read from $RTB_DATA.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs import InverseProblem, make_problem
from envs.data.cluster_profiles import knots, reference
from envs.problems.cluster_sz_xray import cluster_masses
from evaluation.figures.picture import LEARNED, PRIOR, TRUTH, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
DRAWS = 1_000
COSMOS = {"data": "cosmos", "num_steps": 2}
WIDTH = 92.8  # arcmin, of 32 blocks of 10 pixels of 0.29
CLUSTER = {"seed": 0, "num_steps": 3}
Array = NDArray[np.float64]


def chi_square(problem: InverseProblem, drawn: torch.Tensor) -> float:
    """Mean square of the residuals of draws [N, *D], in standard deviations."""
    seen = problem.measurements.double().expand(len(drawn), *problem.measurements.shape[1:])
    return float(problem.likelihood.standardised(drawn, seen).square().mean())


@styled()
def cosmos() -> None:
    """Convergence of the COSMOS field: what shear alone says, the posterior, and a draw of it."""
    problem = make_problem("mass-map", COSMOS)
    exact = problem.exact[0]
    drawn = exact.sample(DRAWS, torch.Generator().manual_seed(0))
    mean, spread = exact.mean[0].numpy(), exact.variance.sqrt()[0].numpy()
    direct = problem.measurement_image(problem.measurements[0]).numpy()
    seen = ~np.isnan(direct)
    top = 0.05
    shown = {
        "Kaiser and Squires": (direct, "RdBu_r", -2 * top, 2 * top),
        "posterior mean": (mean, "RdBu_r", -top, top),
        "a sample": (drawn[0, 0].numpy(), "RdBu_r", -top, top),
        "standard deviation": (spread, "viridis", 0.0, float(spread.max())),
        "mean / deviation": (mean / spread, "RdBu_r", -4.0, 4.0),
        "noise of the shear": (_noise(problem, seen), "viridis", 0.0, None),
    }
    figure = Figure(figsize=(9.0, 5.8))
    half = WIDTH / 2
    for axes, (title, (image, colours, low, high)) in zip(figure.subplots(2, 3).flat, shown.items(), strict=True):
        place = (-half, half, -half, half)
        picture = axes.imshow(image, cmap=colours, vmin=low, vmax=high, origin="lower", extent=place)
        axes.contour(seen, [0.5], colors="#33383f", linewidths=0.6, origin="lower", extent=place)
        figure.colorbar(picture, ax=axes, shrink=0.8)
        axes.set(title=title, xlabel="arcmin")
        axes.grid(visible=False)
        finish(axes)
    (FIGURES / "mass_map_cosmos.png").write_bytes(render(figure, "mass_map_cosmos", "", "").png)
    ratio = np.where(seen, mean / spread, -np.inf)
    peaks = []
    for _ in range(3):
        row, column = divmod(int(ratio.argmax()), 32)
        peaks.append(f"{mean[row, column]:.3f} +- {spread[row, column]:.3f} at {_place(column)}, {_place(row)}")
        ratio[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = -np.inf
    noise = problem.likelihood.noise_std
    sys.stdout.write(
        f"cosmos: log evidence {exact.log_partition:.1f}, chi square of draws {chi_square(problem, drawn[:200]):.3f}, "
        f"{int(seen.sum())} pixels, noise {float(noise.min()):.4f} to {float(noise.max()):.4f}, median "
        f"{float(noise.median()):.4f}; spread where seen {spread[seen].min():.4f} to {spread[seen].max():.4f}, prior "
        f"{problem.prior.data_std:.4f}; peaks {'; '.join(peaks)} arcmin\n"
    )


def _noise(problem: InverseProblem, seen: Array) -> Array:
    noise = problem.likelihood.noise_std.numpy()
    image = np.full(seen.shape, np.nan)
    image[seen] = noise[: len(noise) // 2]
    return image


def _place(index: int) -> str:
    return f"{(index + 0.5) * WIDTH / 32 - WIDTH / 2:+.0f}"


def band(axes: Axes, radius: Array, draws: Array, truth: Array, colour: str, label: str) -> None:
    """The middle 95 % of draws [N, K], their median, and the truth [K]."""
    low, middle, high = np.percentile(draws, [2.5, 50, 97.5], axis=0)
    axes.fill_between(radius, low, high, color=colour, alpha=0.3, linewidth=0)
    axes.plot(radius, middle, color=colour, label=label)
    axes.plot(radius, truth, color=TRUTH, linestyle="--", label="truth")


@styled()
def cluster() -> None:
    """The maps of a simulated cluster, and what they say about its gas and its mass."""
    problem = make_problem("cluster-sz-xray", CLUSTER)
    exact = problem.exact[0]
    drawn = exact.sample(DRAWS, torch.Generator().manual_seed(0)).numpy()
    prior = problem.prior.denoiser.sample(DRAWS, torch.Generator().manual_seed(1)).numpy()
    truth, radius = problem.truth.double().numpy(), knots(8)
    base = reference(radius, 0.3)
    figure = Figure(figsize=(9.0, 5.8))
    sz, counts, density, temperature, pressure, mass = figure.subplots(2, 3).flat
    y = problem.measurements[0].numpy()
    for axes, image, title in (
        (sz, y[:144].reshape(12, 12), "SZ map, $10^{-5}$"),
        (counts, y[144:].reshape(24, 24), "counts"),
    ):
        picture = axes.imshow(image, cmap="magma", origin="lower", extent=(-6, 6, -6, 6))
        figure.colorbar(picture, ax=axes, shrink=0.8)
        axes.set(title=title, xlabel="arcmin")
        axes.grid(visible=False)
        finish(axes)
    quantities = (
        (density, "electron density, cm$^{-3}$", lambda x: np.exp(x[:, 0] + base[0])),
        (temperature, "temperature, keV", lambda x: np.exp(x[:, 1] - x[:, 0] + base[1] - base[0])),
        (pressure, "electron pressure, keV cm$^{-3}$", lambda x: np.exp(x[:, 1] + base[1])),
    )
    for axes, title, quantity in quantities:
        low, high = np.percentile(quantity(prior), [2.5, 97.5], axis=0)
        axes.fill_between(radius, low, high, color=PRIOR, alpha=0.35, linewidth=0, label="prior")
        band(axes, radius, quantity(drawn), quantity(truth)[0], LEARNED, "posterior")
        axes.set(title=title, xlabel="radius, Mpc", xscale="log", yscale="log")
        finish(axes)
    masses, true = cluster_masses(torch.from_numpy(drawn)), cluster_masses(torch.from_numpy(truth))
    band(mass, masses.radius, masses.dark, true.dark[0], LEARNED, "all but gas")
    band(mass, masses.radius, masses.gas, true.gas[0], "#3a9d8f", "gas")
    mass.set(title=r"mass within, $10^{14}$ suns", xlabel="radius, Mpc", xscale="log", yscale="log")
    density.legend()
    handles, labels = mass.get_legend_handles_labels()
    mass.legend(handles[::2], labels[::2])
    finish(mass)
    (FIGURES / "cluster_sz_xray.png").write_bytes(render(figure, "cluster_sz_xray", "", "").png)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    inside = int(((truth[0] > low) & (truth[0] < high)).sum())
    row = int(np.abs(masses.radius - 0.91).argmin())
    dark = masses.dark[:, row]
    sys.stdout.write(
        f"cluster: log evidence {exact.log_partition:.2f} +- {exact.log_partition_error:.2f}, chi square of draws "
        f"{chi_square(problem, torch.from_numpy(drawn[:200])):.3f}, {int(y[144:].sum())} counts, {inside} of 16 within "
        f"95 %, dark mass within {masses.radius[row]:.2f} Mpc {dark.mean():.2f} +- {dark.std():.2f}, true "
        f"{true.dark[0, row]:.2f}, gas {masses.gas[:, row].mean():.3f} +- {masses.gas[:, row].std():.3f}, true "
        f"{true.gas[0, row]:.3f}\n"
    )


def main() -> None:
    """Draws both."""
    torch.set_num_threads(1)
    cosmos()
    cluster()


if __name__ == "__main__":
    main()
