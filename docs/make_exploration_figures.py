"""Draws the figures of exploration.md: acceptance against depth, and samples of the runs of the stability benchmark.

    python docs/make_exploration_figures.py [--runs runs/benchmarks/stability]

The second needs the runs `gmm-25-to-9...-seed0` of that benchmark, and is left as it is without them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from actors.path_search import PathSearch
from actors.suffix_choice import window_sizes
from envs import make_problem
from evaluation.figures.picture import EXACT, LEARNED, LOWER, UPPER, finish, legend, render, styled

FIGURES = Path(__file__).parent / "figures"
PATHS = 1_024
VARIANTS = {"": "all on", "-without-replay": "replay off", "-without-exploration": "exploration off"}


@styled()
def acceptance() -> None:
    """Share of suffixes accepted, and wells that change, by index and size of the window, on manywell."""
    problem = make_problem("manywell", {})
    search = PathSearch(problem, 0, PATHS, generator=torch.Generator().manual_seed(0))
    while search.beta < 1:
        search.temper()
        search.settle()
    search.fit_guide()
    tensors, scalars = search.state_dict()
    indices = range(0, problem.num_steps, 6)
    figure = Figure(figsize=(9.0, 3.4))
    left, right = figure.subplots(1, 2)
    for sides, colour in zip(window_sizes(problem.event_shape), (EXACT, LEARNED, LOWER, UPPER), strict=True):
        shares, wells = [], []
        for index in indices:
            copies = {name: value.clone() for name, value in tensors.items()}
            trial = PathSearch.restore(problem, 0, copies, scalars, search._generator)
            before = trial.samples[:, ::2] > 0
            shares.append(float(trial.redraw_suffix(index, trial.kernels()["guided"], sides).double().mean()))
            wells.append(float(((trial.samples[:, ::2] > 0) != before).double().sum(1).mean()))
        name = "all of x" if sides == problem.event_shape else f"{sides[0]} elements" if sides[0] > 1 else "1 element"
        left.plot(indices, shares, color=colour, label=name)
        right.plot(indices, wells, color=colour)
    left.set(title="Share of suffixes accepted", xlabel="redrawn from index k of 100", ylim=(0, 1))
    right.set(title="Wells that one move changes, of 16", xlabel="redrawn from index k of 100", ylim=(0, None))
    for axes in (left, right):
        finish(axes)
    legend(figure, left)
    (FIGURES / "acceptance.png").write_bytes(render(figure, "acceptance", "", "").png)


@styled()
def samples(runs: Path) -> None:
    """What each of replay and exploration brings, in the plane."""
    problem = make_problem("gmm-25-to-9", {})
    exact = problem.exact[0].sample(2_000, torch.Generator().manual_seed(0)).numpy()
    shown = {"exact": exact}
    for suffix, title in VARIANTS.items():
        path = runs / f"gmm-25-to-9{suffix}-seed0" / "samples.npz"
        if not path.exists():
            sys.stderr.write(f"{path} is missing: samples.png is left as it is\n")
            return
        with np.load(path) as stored:
            shown[title] = stored["samples"][:2_000]
    figure = Figure(figsize=(9.0, 2.7))
    for axes, (title, value) in zip(
        figure.subplots(1, len(shown), sharex=True, sharey=True), shown.items(), strict=True
    ):
        axes.scatter(*value.T, s=1.5, color=EXACT if title == "exact" else LEARNED, linewidths=0)
        axes.set(title=title, xlim=(-12, 12), ylim=(-12, 12), aspect="equal")
        finish(axes)
    (FIGURES / "samples.png").write_bytes(render(figure, "samples", "", "").png)


def main() -> None:
    """Draws both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/stability"))
    known = parser.parse_args()
    torch.set_num_threads(1)
    samples(known.runs)
    acceptance()


if __name__ == "__main__":
    main()
