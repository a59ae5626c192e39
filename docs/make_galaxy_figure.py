"""Draws the figure of galaxy-field in instruments.md: counts of galaxies, and the dark matter behind them.

    python docs/make_galaxy_figure.py

A survey simulated from the prior, and its posterior by Hamiltonian Monte Carlo (`benchmarks.hmc`): nothing is trained.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.galaxies import whitened
from benchmarks.hmc import hmc
from diffusion.field_denoiser import FieldDenoiser
from envs import make_problem
from evaluation.figures.picture import finish, render, styled

FIGURES = Path(__file__).parent / "figures"
CHAINS, WARMUP, DRAWS = 16, 150, 100


@styled()
def main() -> None:
    """Draws it, and prints what the caption says."""
    torch.set_num_threads(1)
    problem = make_problem("galaxy-field", {"num_steps": 2})
    denoiser, generator = problem.prior.denoiser, torch.Generator().manual_seed(0)
    assert isinstance(denoiser, FieldDenoiser) and problem.truth is not None
    field, log_likelihood = whitened(problem, denoiser.power)
    start = 0.1 * torch.randn(CHAINS, 32 * 32, generator=generator, dtype=torch.float64)
    chains = hmc(
        lambda z: log_likelihood(z) - z.square().sum(1) / 2, start, warmup=WARMUP, draws=DRAWS, generator=generator
    )
    drawn = field(chains.draws.flatten(0, 1))[:, 0].numpy()
    mean, spread, truth = drawn.mean(0), drawn.std(0), problem.truth[0, 0].double().numpy()
    error = drawn.reshape(DRAWS, CHAINS, 32, 32).mean(0).std(0) / math.sqrt(CHAINS)
    counts = problem.measurement_image(problem.measurements[0]).numpy()
    seen = ~np.isnan(counts)
    most = float(np.abs(truth).max())
    shown = {
        "galaxies counted": (counts, "magma", 0.0, float(np.nanquantile(counts, 0.98))),
        "truth, g": (truth, "RdBu_r", -most, most),
        "posterior mean": (mean, "RdBu_r", -most, most),
        "a sample": (drawn[-1], "RdBu_r", -most, most),
        "std. deviation": (spread, "viridis", 0.0, float(spread.max())),
    }
    figure = Figure(figsize=(9.0, 2.3))
    for axes, (title, (image, colours, low, high)) in zip(figure.subplots(1, 5).flat, shown.items(), strict=True):
        picture = axes.imshow(image, cmap=colours, vmin=low, vmax=high)
        axes.contour(seen, [0.5], colors="#33383f", linewidths=0.6)
        figure.colorbar(picture, ax=axes, shrink=0.7)
        axes.set_title(title)
        finish(axes, ticks=False)
    (FIGURES / "galaxy_field.png").write_bytes(render(figure, "galaxy_field", "", "").png)
    inside = np.abs(truth - mean) < 1.96 * spread
    value = torch.from_numpy(drawn[-200:, None])
    square = problem.likelihood.standardised(value, problem.measurements.double().expand(200, -1)).square().mean()
    near, far = seen & (np.arange(32)[:, None] < 8), seen & (np.arange(32)[:, None] >= 24)
    sys.stdout.write(
        f"{int(np.nansum(counts))} galaxies, acceptance {chains.acceptance:.2f}, largest error of a mean "
        f"{error.max():.3f}; correlation of mean and truth {np.corrcoef(mean[seen], truth[seen])[0, 1]:.2f} where "
        f"seen; truth within 95 % in {inside[seen].mean():.3f} of the cells seen and {inside[~seen].mean():.3f} of "
        f"{int((~seen).sum())} others; spread {spread[near].mean():.2f} near, {spread[far].mean():.2f} far, "
        f"{spread[~seen].max():.2f} at most in the hole, prior {problem.prior.data_std:.2f}; chi square {square:.3f}\n"
    )


if __name__ == "__main__":
    main()
