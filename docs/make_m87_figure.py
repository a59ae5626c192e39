r"""Draws the figure of instruments.md: the black hole of M87, from closures alone, and the diameter of its ring.

    rtb train configs/experiments/radio_closure.yaml --problem.data m87 --problem.num-steps 200 \
        --max-seconds 300 --evaluation.final-trajectories 4096 --run runs/m87
    rtb sample runs/m87 --num 16384 --corrected 512
    python docs/make_m87_figure.py runs/m87

Without the folder of a run the posterior is that of `benchmarks.closures`, without diffusion or training, and nothing
is drawn, but the same numbers are printed. The data are read from $RTB_DATA.

Closures know neither place nor flux, so images are moved to the middle of their ring and scaled to one flux before they
are averaged. The diameter is that of the ridge, as in the publication (Event Horizon Telescope Collaboration 2019, ApJ
875, L4, section 9): twice the mean radius of the brightest point along 36 rays from the centre at which these radii
differ least.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, shift

from benchmarks.closures import closure_reference
from diffusion.denoiser import MixtureDenoiser
from envs import make_problem
from envs.problems.radio.sky import KINDS, shapes
from evaluation.figures.picture import LEARNED, TRUTH, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
FIELD = 128.0  # microarcseconds
PUBLISHED = (42.0, 3.0)  # microarcseconds
RAYS, RADII = 36, np.arange(8.0, 40.0, 0.25)
REACH, STRIDE = 10.0, 1.0  # of the search for the centre, microarcseconds

Image = NDArray[np.float64]


def ring(image: Image) -> tuple[float, float, tuple[float, float]]:
    """Diameter and its spread over the rays, microarcseconds, and the centre in pixels, of `image` [H, W]."""
    size = len(image)
    pixel = FIELD / size
    light = np.clip(image, 0, None)
    rows, columns = np.mgrid[:size, :size]
    middle = (light * rows).sum() / light.sum(), (light * columns).sum() / light.sum()
    angle = np.arange(RAYS) * 2 * np.pi / RAYS
    down, right = (np.outer(function(angle), RADII) / pixel for function in (np.sin, np.cos))
    best: tuple[float, float, tuple[float, float]] = (0.0, np.inf, middle)
    offsets = np.arange(-REACH, REACH + STRIDE / 2, STRIDE) / pixel
    for row in middle[0] + offsets:
        for column in middle[1] + offsets:
            along = map_coordinates(image, [row + down, column + right], order=1)
            radius = RADII[along.argmax(1)]
            if radius.std() / radius.mean() < best[1] / max(best[0], 1e-9):
                best = 2 * radius.mean(), 2 * radius.std(), (row, column)
    return best


@styled()
def main() -> None:
    """Draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run of radio-closure with data m87")
    folder: Path | None = parser.parse_args().run
    torch.set_num_threads(1)
    size = 16 if folder is None else np.load(folder / "samples.npz")["corrected"].shape[-1]
    problem = make_problem("radio-closure", {"data": "m87", "size": size, "num_steps": 2})
    if folder is None:
        found = closure_reference(problem)
        drawn = found.draws
        sys.stdout.write(f"reference: log Z {found.log_partition:.1f}\n")
    else:
        drawn = torch.from_numpy(np.load(folder / "samples.npz")["corrected"])
    images = drawn[:, 0].double().numpy()
    seen = problem.measurements.expand(len(images), *problem.measurements.shape[1:])
    square = float(problem.likelihood.standardised(drawn.double(), seen.double()).square().mean())  # type: ignore[attr-defined]
    measured = [ring(image) for image in images]
    diameter = np.array([each[0] for each in measured])
    low, middle, high = np.quantile(diameter, (0.16, 0.5, 0.84))
    density = problem.prior.denoiser
    assert isinstance(density, MixtureDenoiser)
    component = density.classify(drawn.double()).mean(0)
    share = {kind: float(component[shapes(size)[1] == index].sum()) for index, kind in enumerate(KINDS)}
    sys.stdout.write(
        f"{problem.measurements.numel()} closures, {len(images)} draws, chi2 {square:.2f}, shapes {share}\n"
        f"diameter {middle:.1f} +{high - middle:.1f} -{middle - low:.1f}, mean {diameter.mean():.1f} +- "
        f"{diameter.std():.1f} microarcseconds\n"
    )
    if folder is None:
        return

    centred = [
        shift(image, [size // 2 - place for place in each[2]], order=1) / image.sum()
        for image, each in zip(images, measured, strict=True)
    ]
    mean, spread = np.mean(centred, 0), np.std(centred, 0)
    chosen = np.random.default_rng(0).choice(len(centred), 2, replace=False)
    figure = Figure(figsize=(9.0, 2.6))
    panels = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.35))
    half = FIELD / 2
    pictures = [(mean, "mean"), (spread, "std. deviation"), *((centred[row], "one sample") for row in chosen)]
    for axes, (picture, title) in zip(panels, pictures, strict=False):
        axes.imshow(picture, cmap="magma", vmin=0, vmax=mean.max(), extent=(half, -half, -half, half))
        axes.set_title(title)
        finish(axes, ticks=False)
    panels[0].plot([50, 10], [-54, -54], color="white", linewidth=1.5)
    panels[0].text(30, -50, "40 μas", color="white", ha="center", va="bottom", fontsize=8)
    panels[4].hist(diameter, bins=np.arange(30.0, 56.0, 1.0), color=LEARNED)
    panels[4].axvspan(PUBLISHED[0] - PUBLISHED[1], PUBLISHED[0] + PUBLISHED[1], color=TRUTH, alpha=0.2, linewidth=0)
    panels[4].axvline(PUBLISHED[0], color=TRUTH, linestyle="--", linewidth=1, label="published")
    panels[4].set(title="diameter, μas", yticks=[])
    panels[4].legend(loc="upper left", fontsize=8)
    finish(panels[4])
    (FIGURES / "radio_m87.png").write_bytes(render(figure, "radio_m87", "", "").png)


if __name__ == "__main__":
    main()
