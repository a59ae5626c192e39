"""Draws the figures of gallery.md of real images: seen in part, coarsely or by magnitudes alone, by trained posteriors.

    python docs/make_images_figure.py FIGURE RUN [RUN ...]

A row is a run of `configs/experiments/image_trained.yaml`. Its samples are those that the run ended with: the first are
shown, none is chosen or weighted, and mean and standard deviation are those of all. The images are read from $RTB_DATA.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs import InverseProblem
from envs.data import load_dataset
from evaluation.figures.images import colour_last, deviation, show
from evaluation.figures.picture import render, styled
from system.assembly import build_problem, on_device_at_hand
from system.run import open_run

FIGURES = Path(__file__).parent / "figures"
SHOWN = 6
FAINT = 0.03  # magnitude below which all is drawn black
Array = NDArray[np.float64]


def seen(problem: InverseProblem) -> tuple[Array, float, float]:
    """The measurement as a picture, and the values that are black and white."""
    image = problem.measurement_image(problem.measurements[0]).double().numpy()
    if problem.name != "image-phase-retrieval":
        return (image if image.ndim == 2 else colour_last(image)), -1.0, 1.0
    image = image.reshape(problem.event_shape[0], -1, image.shape[-1]).mean(0)  # over the colours, which are stacked
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


def told(problem: InverseProblem, samples: Array, truth: Array) -> str:
    """What the samples [N, H, W] or [N, H, W, 3] are, in numbers."""
    words = f"nearest to images {nearest_digits(samples)}" if samples.ndim == 3 else "in colour"
    if problem.name == "image-phase-retrieval":
        pixels = tuple(range(1, samples.ndim))
        turned = ((samples - truth[::-1, ::-1]) ** 2).mean(pixels) < ((samples - truth) ** 2).mean(pixels)
        words += f"; {int(turned.sum())} nearer to the truth upside down"
    hidden = np.isnan(seen(problem)[0]) if problem.name == "image-inpainting" else np.ones(truth.shape, bool)
    error = np.sqrt(((samples.mean(0) - truth)[hidden] ** 2).mean())
    spread = np.sqrt(samples.var(0)[hidden].mean())
    return f"{words}; error of the mean {error:.3f}, spread {spread:.3f}, of the truth {truth[hidden].std():.3f}"


@styled()
def draw(name: str, runs: Sequence[Path]) -> None:
    """Writes docs/figures/`name`.png, and prints what its caption says."""
    figure = Figure(figsize=(10.8, 1.25 * len(runs)))
    panels = figure.subplots(len(runs), 4 + SHOWN, squeeze=False)
    for row, directory in enumerate(runs):
        run, config = open_run(directory)
        problem, axes = build_problem(on_device_at_hand(config)), panels[row]
        assert problem.truth is not None
        truth = colour_last(problem.truth[0].double().numpy())
        with np.load(run.samples) as stored:
            samples = colour_last(stored["samples"].astype(np.float64))
        spread = deviation(samples)
        shown = [("truth", truth, -1.0, 1.0), ("measured", *seen(problem))]
        shown += [("" if index else "samples", samples[index], -1.0, 1.0) for index in range(SHOWN)]
        shown += [("mean", samples.mean(0), -1.0, 1.0)]
        for panel, (title, image, low, high) in zip(axes, shown, strict=False):
            show(panel, image, low, high, "" if row else title, hatched=title == "measured")
        title = "" if row else "deviation"
        picture = show(axes[-1], spread, 0.0, float(np.quantile(spread, 0.999)), title, colours="magma")
        bar = figure.colorbar(picture, cax=axes[-1].inset_axes((1.06, 0.0, 0.07, 1.0)))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8.5)
        label = problem.name.removeprefix("image-")
        axes[0].set_ylabel(label)
        values = json.loads(run.results.read_text(encoding="utf-8"))["metrics"]
        sys.stdout.write(
            f"{label}: ELBO {values['eval/elbo']:.1f} +- {values['eval/elbo_standard_error']:.1f}, IW "
            f"{values['eval/iw_log_partition']:.1f}, ESS {values['eval/effective_sample_size'] * len(samples):.2f} of "
            f"{len(samples)}, reduced chi square {values['eval/reduced_chi2']:.3f}; {told(problem, samples, truth)}\n"
        )
    (FIGURES / f"{name}.png").write_bytes(render(figure, name, "", "").png)


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", help="name of the figure, as mnist_problems")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, a row of the figure each")
    torch.set_num_threads(1)
    known = parser.parse_args()
    draw(known.figure, known.runs)


if __name__ == "__main__":
    main()
