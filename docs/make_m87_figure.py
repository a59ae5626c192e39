"""Draws the M87 figure of instruments.md: samples given the closures of 2017 April 11, and the diameter of the ring.

    python docs/make_m87_figure.py

The prior's density is known here, so a population of images is tempered from the prior to the posterior, by importance
resampling at half the population's effective size (Del Moral et al. 2006) and Hamiltonian moves in coordinates in which
the prior's components are spheres. It is a reference beside what a trained posterior gives; its log Z is an estimate
of one run, and its members descend from few of the prior's draws.

The diameter of a ring is twice the mean, over 36 directions, of the distance from the centre to the brightest point,
12 to 40 microarcsec away (bilinear between pixels). The centre is where that distance varies least, within 12
microarcsec of the centroid of the pixels brighter than half the peak, and at neither end of the range in any
direction; an image without such a centre has no ring. After EHT Collaboration 2019, Paper IV (ApJ 875, L4), section 9;
published is 42 +- 3 microarcsec (Paper I, ApJ 875, L1).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from envs import InverseProblem, make_problem
from evaluation.figures.picture import LEARNED, TRUTH, finish, render, styled

FIGURES = Path(__file__).parent / "figures"
SIZE, FIELD = 16, 128.0  # microarcsec
COUNT, MOVES, LEAPS = 64, 4, 10
ANGLES = np.linspace(0, 2 * math.pi, 36, endpoint=False)
RADII = np.arange(12.0, 40.5, 0.5)
"""Microarcsec."""


def population(problem: InverseProblem, count: int, seed: int) -> tuple[Tensor, float]:
    """`count` images of the posterior, and an estimate of log Z in nats."""
    density = problem.prior.denoiser
    assert isinstance(density, MixtureDenoiser) and density.eigenvectors is not None and problem.gradient is not None
    generator = torch.Generator().manual_seed(seed)
    root = (density.eigenvectors * density.eigenvalues.sqrt()).float()
    inverse = (density.eigenvectors / density.eigenvalues.sqrt()).float()
    means, log_weights = density.means.float() @ inverse, density.log_weights.float()
    rows = torch.zeros(count, dtype=torch.int64)
    seen = problem.measurements[rows]

    def images(value: Tensor) -> Tensor:
        return (value @ root.T).reshape(-1, *problem.event_shape)

    def terms(value: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log prior and log likelihood [N], and the gradient of the first plus `beta` times the second."""
        leaf = value.detach().requires_grad_(True)
        square = leaf.square().sum(1, keepdim=True) - 2 * leaf @ means.T + means.square().sum(1)
        prior, likelihood = (log_weights - 0.5 * square).logsumexp(1), problem.likelihood.log_prob(images(leaf), seen)
        (slope,) = torch.autograd.grad((prior + beta * likelihood).sum(), leaf)
        return prior.detach(), likelihood.detach(), slope

    value = density.sample(count, generator).flatten(1).float() @ inverse
    likelihood = terms(value, 0.0)[1]
    beta, log_partition, size = 0.0, 0.0, 0.15
    while beta < 1:
        step = _next(beta, likelihood.double()) - beta
        gained = step * likelihood.double()
        log_partition += float(gained.logsumexp(0)) - math.log(count)
        value = value[torch.multinomial(gained.softmax(0), count, replacement=True, generator=generator)]
        beta += step
        for _ in range(MOVES if beta < 1 else 4 * MOVES):
            prior, likelihood, slope = terms(value, beta)
            momentum = torch.randn(value.shape, generator=generator)
            before = prior + beta * likelihood - 0.5 * momentum.square().sum(1)
            length = size * (0.7 + 0.6 * float(torch.rand((), generator=generator)))
            place, momentum = value, momentum + 0.5 * length * slope
            for leap in range(LEAPS):
                place = place + length * momentum
                prior, proposed, slope = terms(place, beta)
                momentum = momentum + (length if leap < LEAPS - 1 else 0.5 * length) * slope
            after = prior + beta * proposed - 0.5 * momentum.square().sum(1)
            taken = torch.rand(count, generator=generator).log() < after - before
            value, likelihood = torch.where(taken[:, None], place, value), torch.where(taken, proposed, likelihood)
            size *= math.exp(0.5 * (float(taken.double().mean()) - 0.75))
    return images(value), log_partition


def _next(beta: float, likelihood: Tensor) -> float:
    """The next inverse temperature: one, or where the weights have half of the population as effective size."""

    def effective(new: float) -> float:
        return 1 / float(((new - beta) * likelihood).softmax(0).square().sum()) / len(likelihood)

    if effective(1.0) >= 0.5:
        return 1.0
    low, high = beta, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) > 0.5 else (low, middle)
    return low


def ring(image: np.ndarray) -> tuple[float, float, float]:
    """Diameter in microarcsec, relative spread of the radius over directions, brightness of the south over north."""
    pixel = FIELD / SIZE
    bright = np.where(image > 0.5 * image.max(), image, 0)
    rows, columns = np.indices(image.shape)
    centre = (rows * bright).sum() / bright.sum(), (columns * bright).sum() / bright.sum()
    best = (math.inf, math.nan, math.nan)
    for down in np.arange(-1.5, 1.75, 0.25):
        for right in np.arange(-1.5, 1.75, 0.25):
            along = centre[0] + down + np.outer(np.sin(ANGLES), RADII / pixel)
            across = centre[1] + right + np.outer(np.cos(ANGLES), RADII / pixel)
            rays = map_coordinates(image, [along, across], order=1, mode="constant")
            radius, peak = RADII[rays.argmax(1)], rays.max(1)
            south = peak[np.sin(ANGLES) > 0].mean() / peak[np.sin(ANGLES) < 0].mean()  # rows count towards the south
            inside = (radius > RADII[0]).all() and (
                radius < RADII[-1]
            ).all()  # elsewhere the brightest point is no ring
            if inside and (spread := radius.std() / radius.mean()) < best[0]:
                best = (float(spread), float(2 * radius.mean()), float(south))
    return best[1], best[0], best[2]


def _rings(images: np.ndarray) -> tuple[np.ndarray, int]:
    """What `ring` says of those of `images` that have one [M, 3], and M."""
    found = np.array([ring(image) for image in images])
    found = found[np.isfinite(found[:, 0])]
    return found, len(found)


@styled()
def main() -> None:
    """Draws it, and prints the numbers."""
    torch.set_num_threads(1)
    problem = make_problem("radio-closure", {"data": "m87", "size": SIZE, "num_steps": 2})
    drawn, log_partition = population(problem, COUNT, 0)
    square = problem.likelihood.standardised(drawn, problem.measurements.expand(COUNT, -1)).double().square().mean()
    images = drawn[:, 0].numpy().astype(float)
    found, rings = _rings(images)
    assert isinstance(problem.prior.denoiser, MixtureDenoiser)
    before = problem.prior.denoiser.sample(COUNT, torch.Generator().manual_seed(1))[:, 0].numpy()
    known, rings_before = _rings(before)
    mean, std, (prior_mean, *_), (prior_std, *_) = found.mean(0), found.std(0), known.mean(0), known.std(0)
    sys.stdout.write(
        f"{problem.measurements.shape[1]} closures, log Z {log_partition:.0f}, chi2 {float(square):.2f}, diameter "
        f"{mean[0]:.1f} +- {std[0]:.1f} (prior {prior_mean:.1f} +- {prior_std:.1f}), spread of the radius "
        f"{mean[1]:.2f}, south over north {mean[2]:.2f} +- {std[2]:.2f}, rings {rings} and {rings_before} of {COUNT}\n"
    )
    figure = Figure(figsize=(9.0, 2.6))
    panels = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.4))
    shown = {
        "mean": images.mean(0),
        "std. deviation": images.std(0),
        "sample": images[0],
        "another": images[COUNT // 2],
    }
    for axes, (title, image) in zip(panels, shown.items(), strict=False):
        axes.imshow(image, cmap="magma", vmin=0, vmax=images.mean(0).max())
        axes.set_title(title)
        finish(axes, ticks=False)
    panels[4].hist(found[:, 0], bins=np.arange(24, 80, 2.0), color=LEARNED, density=True, label="samples")
    panels[4].hist(known[:, 0], bins=np.arange(24, 80, 2.0), color="#a9b1ba", alpha=0.6, density=True, label="prior")
    panels[4].axvspan(39, 45, color=TRUTH, alpha=0.25, linewidth=0, label="published")
    panels[4].set(title="diameter, μas")
    panels[4].legend()
    finish(panels[4])
    (FIGURES / "m87.png").write_bytes(render(figure, "m87", "", "").png)


if __name__ == "__main__":
    main()
