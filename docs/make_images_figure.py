"""Draws the MNIST figure of gallery.md: inpainting, super-resolution and phase retrieval by trained posteriors.

    python docs/make_images_figure.py RUNS [--untrained]

RUNS holds the run directories of `configs/experiments/image_trained.yaml` under the names of the problems; one that is
missing is trained first, with the processor time that the configuration gives. Samples are those that the run ended
with, the first of them shown and none chosen or weighted. `--untrained` also judges the posterior that training began
with, on the same random numbers. MNIST is read from $RTB_DATA.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs import InverseProblem
from envs.data import load_dataset
from evaluation.figures.images import show
from evaluation.figures.picture import render, styled
from system.assembly import build_learner, build_problem
from system.config_file import load_config
from system.judge import judge
from system.run import open_run, train

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).parent / "figures"
CONFIG = ROOT / "configs" / "experiments" / "image_trained.yaml"
TASKS = {
    "image-inpainting": "inpainting",
    "image-super-resolution": "super-resolution",
    "image-phase-retrieval": "phase retrieval",
}
SHOWN = 6
FAINT = 0.03  # magnitude below which all is drawn black
Array = NDArray[np.float64]


def trained(name: str, runs: Path) -> Path:
    """The run directory of the problem called `name`, trained if there is none."""
    if not (runs / name).exists():
        options = ["--problem.name", name, "--problem.prior", "mnist", "--clock", "cpu"]
        train(load_config(CONFIG, options), runs / name)
    return runs / name


def seen(problem: InverseProblem) -> tuple[Array, float, float]:
    """The measurement as a picture, and the values that are black and white."""
    image = problem.measurement_image(problem.measurements[0]).double().numpy()
    if problem.name != "image-phase-retrieval":
        return image, -1.0, 1.0
    half = np.fft.fftshift(image, axes=0)  # frequency zero in the middle of the rows and the first of the columns
    mirrored = np.roll(half[::-1, ::-1], 1, axis=0)[:, :-1]
    whole = np.log10(np.concatenate([mirrored, half], axis=1).clip(FAINT))
    return whole, float(np.log10(FAINT)), float(whole.max())


def nearest_digits(samples: Array) -> str:
    """How many of the samples [N, H, W] are nearest to an image of each class, among those the prior was trained on."""
    data = load_dataset("mnist")
    images, labels = data.train.flatten(1), data.train_labels
    assert labels is not None
    drawn = torch.from_numpy(samples).float().flatten(1)
    nearest = (images.square().sum(1) - 2 * drawn @ images.T).argmin(1)
    counts = labels[nearest].long().bincount(minlength=10).tolist()
    return ", ".join(f"{count} of {digit}" for digit, count in enumerate(counts) if count)


def told(name: str, problem: InverseProblem, samples: Array, truth: Array) -> str:
    """What the samples [N, H, W] look like, in words."""
    words = f"nearest to images {nearest_digits(samples)}"
    if name == "image-phase-retrieval":
        turned = ((samples - truth[::-1, ::-1]) ** 2).mean((1, 2)) < ((samples - truth) ** 2).mean((1, 2))
        words += f"; {int(turned.sum())} nearer to the truth upside down"
    hidden = np.isnan(seen(problem)[0]) if name == "image-inpainting" else np.ones(truth.shape, bool)
    error = np.sqrt(((samples.mean(0) - truth)[hidden] ** 2).mean())
    spread = np.sqrt(samples.var(0)[hidden].mean())
    return f"{words}; error of the mean {error:.3f}, spread {spread:.3f}, truth's own {truth[hidden].std():.3f}"


@styled()
def draw(runs: Path, untrained: bool) -> None:
    """Writes docs/figures/mnist_problems.png, and prints what its caption says."""
    columns = 4 + SHOWN
    figure = Figure(figsize=(10.8, 3.75))
    panels = figure.subplots(len(TASKS), columns, squeeze=False)
    for row, (name, label) in enumerate(TASKS.items()):
        axes = panels[row]
        run, config = open_run(trained(name, runs))
        problem = build_problem(config)
        assert problem.truth is not None
        truth = problem.truth[0, 0].double().numpy()
        with np.load(run.samples) as stored:
            samples = stored["samples"][:, 0].astype(np.float64)
        mean, spread = samples.mean(0), samples.std(0)
        shown = [("truth", truth, -1.0, 1.0), ("measurement", *seen(problem))]
        shown += [("samples" if not index else "", samples[index], -1.0, 1.0) for index in range(SHOWN)]
        shown += [("mean", mean, -1.0, 1.0)]
        for panel, (title, image, low, high) in zip(axes, shown, strict=False):
            show(panel, image, low, high, "" if row else title, hatched=title == "measurement")
        title = "" if row else "deviation"
        picture = show(axes[-1], spread, 0.0, float(np.quantile(spread, 0.999)), title, colours="magma")
        bar = figure.colorbar(picture, cax=axes[-1].inset_axes((1.06, 0.0, 0.07, 1.0)))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8.5)
        axes[0].set_ylabel(label)
        metrics = json.loads(run.results.read_text(encoding="utf-8"))["metrics"]
        lines = [("trained", metrics)]
        if untrained:
            before = judge(config, problem, build_learner(config, problem).weights(), quick=False)[0]
            lines.insert(0, ("untrained", before.as_metrics()))
        for state, values in lines:
            sys.stdout.write(
                f"{label}, {state}: ELBO {values['eval/elbo']:.1f} +- {values['eval/elbo_standard_error']:.1f}, "
                f"IW {values['eval/iw_log_partition']:.1f}, ESS {values['eval/effective_sample_size']:.4f} of "
                f"{values['eval/count']:.0f}, reduced chi square {values['eval/reduced_chi2']:.3f}\n"
            )
        sys.stdout.write(f"{label}: {told(name, problem, samples, truth)}\n")
    (FIGURES / "mnist_problems.png").write_bytes(render(figure, "mnist_problems", "", "").png)


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="where the three run directories are, or will be")
    parser.add_argument("--untrained", action="store_true", help="judge the posterior that training began with, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw(given.runs, given.untrained)


if __name__ == "__main__":
    main()
