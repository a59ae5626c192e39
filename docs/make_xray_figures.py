"""Draws the figure of instruments.md: spectra of a quasar by Chandra and of a cluster of galaxies by ASCA.

    python docs/make_xray_figures.py

The posteriors are by importance sampling over the components of the prior (`benchmarks.spectra`), so nothing is
trained; the data are read from $RTB_DATA. Bands hold 95 % of the posterior in each bin.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.spectra import mixture_reference
from envs import make_problem
from envs.data import data_file
from envs.data.xray_spectra import REFERENCE_INDEX, energy_edges
from envs.problems.xray_spectrum import Folded, folding_matrix, read_observation
from evaluation.figures.picture import EXACT, LEARNED, TRUTH, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
SOURCE = "https://github.com/sherpa/sherpa-test-data"
BAND = (0.025, 0.975)
BINS = 24
SPECTRA: dict[str, dict[str, Any]] = {
    "3C 273, Chandra": {"files": ("3c273.pi",), "low": 0.5, "high": 7.0, "group": 0, "flux": 1e-3},
    "A2029, ASCA": {
        "files": ("sis0.pha", "sis0.arf", "sis0.rmf"), "low": 0.8, "high": 8.0, "group": 8, "flux": 0.03,
        "spectra": 10_000,
    },
}  # fmt: skip
IRON = 6.7 / 1.0773
"""Energy of the line of helium-like iron at the redshift of A2029 (Sohn et al. 2019, ApJ 871, 129), keV."""


def weighted_quantiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[2, D] the ends of `BAND` for `values` [S, D] with `weights` [S] of sum one."""
    order = values.argsort(0)
    below = weights[order].cumsum(0)
    rows = [(below >= share).argmax(0) for share in BAND]
    return np.stack([np.take_along_axis(values, order[row, range(len(row))][None], 0)[0] for row in rows])


def draw_spectrum(name: str, options: dict[str, Any], counts: Axes, residual: Axes, spectrum: Axes) -> None:
    """One source: counts against what the posterior expects, what is left, and the flux."""
    files = [data_file("xray_sherpa", file, source=SOURCE) for file in options["files"]]
    limits = {key: options[key] for key in ("low", "high", "group")}
    observed = read_observation(*files, **limits)
    named = dict(zip(("spectrum", "arf", "rmf"), map(str, files), strict=False))
    rest = {key: value for key, value in options.items() if key != "files"}
    problem = make_problem("xray-spectrum", {**named, **rest, "bins": BINS})
    found = mixture_reference(problem)
    weights, log_flux = found.weights.numpy(), found.samples.numpy()

    background = 0.0 if observed.background is None else observed.background * observed.ratio
    folded = Folded(folding_matrix(observed, energy_edges(options["low"], options["high"], BINS), options["flux"]))
    expected = folded(found.samples).numpy() + background
    width = np.diff(observed.channel_energy, axis=1)[:, 0]
    middle = observed.channel_energy.mean(1)
    low, high = weighted_quantiles(expected, weights) / width
    mean = weights @ expected
    chi = (observed.counts - mean) / np.sqrt(mean)
    counts.fill_between(middle, low, high, step="mid", color=LEARNED, alpha=0.4, linewidth=0, label="expected")
    error = np.sqrt(np.maximum(observed.counts, 1)) / width
    counts.errorbar(
        middle, observed.counts / width, error, fmt=".", color=EXACT, markersize=3, linewidth=0.7, label="counts"
    )
    counts.set(title=f"{name}: counts / keV", xscale="log", yscale="log")
    counts.legend(loc="lower center")
    residual.plot(middle, chi, ".", color=EXACT, markersize=3)
    residual.axhline(0, color=LEARNED, linewidth=1)
    residual.set(xlabel="channel energy, keV", ylabel="residuals, σ", xscale="log", ylim=(-4.5, 4.5))

    edges = energy_edges(options["low"], options["high"], BINS)
    energy = np.sqrt(edges[1:] * edges[:-1])
    scale = options["flux"] * energy**-REFERENCE_INDEX
    band = scale * np.exp(weighted_quantiles(log_flux, weights))
    spectrum.stairs(band[1], edges, baseline=band[0], fill=True, color=LEARNED, alpha=0.4)
    spectrum.stairs(scale * np.exp(weights @ log_flux), edges, baseline=None, color=LEARNED)
    spectrum.set(title="photons / cm² / s / keV", xscale="log", yscale="log")
    spectrum.set_xlabel("energy, keV")
    if "A2029" in name:
        spectrum.axvline(IRON, color=TRUTH, linestyle="--", linewidth=1)
        spectrum.text(0.96 * IRON, band.max(), "iron", color=TRUTH, ha="right", va="top")
    for axes in (counts, residual, spectrum):
        axes.set_xticks([1, 2, 5], ["1", "2", "5"])
        axes.minorticks_off()
        finish(axes)
    log_std = np.sqrt(weights @ (log_flux - weights @ log_flux) ** 2)
    sys.stdout.write(
        f"{name}: {observed.counts.sum():.0f} counts in {len(middle)} groups, log Z {found.log_partition:.2f} +- "
        f"{found.standard_error:.2f}, {found.components} components, ESS {1 / (weights**2).sum():.0f}, chi2 of the "
        f"mean {(chi**2).mean():.2f}, flux known to {100 * log_std.min():.0f} to {100 * log_std.max():.0f} %\n"
    )


@styled()
def main() -> None:
    """Draws it."""
    torch.set_num_threads(1)
    figure = Figure(figsize=(9.0, 6.6))
    rows = list(figure.subfigures(len(SPECTRA), 1))
    for part, (name, options) in zip(rows, SPECTRA.items(), strict=True):
        left, right = part.subfigures(1, 2, width_ratios=(1.15, 1))
        counts, residual = left.subplots(2, 1, height_ratios=(2.2, 1), sharex=True)
        draw_spectrum(name, options, counts, residual, right.subplots())
    (FIGURES / "xray_spectra.png").write_bytes(render(figure, "xray_spectra", "", "").png)


if __name__ == "__main__":
    main()
