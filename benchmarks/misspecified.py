r"""A galaxy prior on disks: what a wrong prior does to intervals, residuals and the evidence.

Truths are draws of the prior `shapes` of `radio-uv` (discs, Gaussians, rings, crescents, doubles), seen as AS 209 was:
in the 81 averaged visibilities of `as209`, with their noise. Each has two posteriors, under `shapes`, which is right,
and under `galaxies`, which is not. Nothing is trained, and nothing is drawn: a linear number a x of a mixture's x has
the distribution function

    F(a x) = sum_i w_i Phi(a (x - mu_i) / sqrt(a C a)),

and the truth lies in the central interval of probability p if |F - 1/2| <= p / 2. That is asked of every pixel, of the
total flux and of the flux in rings around the middle. The chi square is the posterior's mean of the squared residuals,
in standard deviations of the noise, per number measured: 1 on average under the right prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.harness import parse, write_figures
from diffusion.denoiser import MixtureDenoiser
from envs import make_problem
from envs.exact.whitened import condition_on_weighted
from envs.likelihoods import GaussianLikelihood
from envs.operators import LinearOperator
from envs.problems.radio.sky import EACH, KINDS

PRIORS = {"right": "shapes", "wrong": "galaxies"}
TRUTHS, SHORT_TRUTHS = 500, 100
LEVELS = (50, 90, 95)  # per cent
RINGS = (0, 2, 4, 6)  # edges in pixels: 0.5 arcsec each
DISKS = ("disc", "ring")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One posterior beside the truth."""

    below: Tensor
    """[L] posterior probability that each linear number is less than that of the truth."""
    chi2: float
    """Posterior mean of the squared residuals, per number measured."""
    log_partition: float
    """log p(y), nats."""


def judged(
    density: MixtureDenoiser, matrix: Tensor, std: Tensor, measurement: Tensor, truth: Tensor, numbers: Tensor
) -> Judgement:
    """The posterior of `density` given y = A x + noise, against x = `truth` [D].

    A = `matrix` [m, D], y = `measurement` [m], of noise `std` [m]; `numbers` [L, D] are linear ones; all float64.
    """
    posterior = condition_on_weighted(density, matrix, std, measurement)
    weight, means, covariance = posterior.log_weights.exp(), posterior.means, posterior.covariance
    spread = torch.einsum("ld,de,le->l", numbers, covariance, numbers).sqrt()
    below = weight @ torch.special.ndtr((numbers @ truth - means @ numbers.T) / spread)
    white = matrix / std[:, None]
    left = (measurement / std - means @ white.T).square().sum(1)
    noise = torch.einsum("md,de,me->", white, covariance, white)
    square = float(weight @ left + noise) / len(measurement)
    return Judgement(below=below, chi2=square, log_partition=posterior.log_partition)


def linear_numbers(size: int, edges: Sequence[float] = RINGS) -> Tensor:
    """[size^2 + 1 + rings, size^2] float64: each pixel, the sum of all, and the sums in rings around the middle."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    radius = torch.hypot(line[:, None], line).flatten()
    rings = [((radius >= low) & (radius < high)).double() for low, high in pairwise(edges)]
    return torch.cat([torch.eye(size**2, dtype=torch.float64), torch.stack([torch.ones_like(radius), *rings])])


def inside(below: Tensor, percent: int) -> Tensor:
    """Whether the truth is in the central interval of that probability, 1 or 0, for each of `below`."""
    return ((below - 0.5).abs() <= percent / 200).double()


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("misspecified", __doc__ or "")
    count = SHORT_TRUTHS if benchmark.short else TRUTHS
    problems = {
        kind: make_problem("radio-uv", {"data": "as209", "prior": prior, "num_steps": 2})
        for kind, prior in PRIORS.items()
    }
    likelihood = problems["right"].likelihood
    assert isinstance(likelihood, GaussianLikelihood) and isinstance(likelihood.noise_std, Tensor)
    assert isinstance(likelihood.operator, LinearOperator)
    matrix, std = likelihood.operator.as_matrix().double(), likelihood.noise_std.double().flatten()
    densities: dict[str, MixtureDenoiser] = {}
    for kind, problem in problems.items():
        assert isinstance(problem.prior.denoiser, MixtureDenoiser)
        densities[kind] = problem.prior.denoiser
    right, generator = densities["right"], torch.Generator().manual_seed(0)
    rows = torch.randint(len(right.means), (count,), generator=generator)
    noise = torch.randn(count, right.means.shape[1], generator=generator, dtype=torch.float64)
    truths = right.means[rows] + noise @ torch.linalg.cholesky(right.covariance).T
    seen = truths @ matrix.T + std * torch.randn(count, len(std), generator=generator, dtype=torch.float64)
    numbers = linear_numbers(problems["right"].event_shape[-1])
    found = {
        kind: [judged(density, matrix, std, y, truth, numbers) for y, truth in zip(seen, truths, strict=True)]
        for kind, density in densities.items()
    }
    figures = figures_of(found, rows // EACH, truths.shape[1])
    show(figures)
    write_figures(benchmark.json, figures)


def figures_of(found: dict[str, list[Judgement]], kinds: Tensor, pixels: int) -> dict[str, float]:
    """Coverage and residuals of the posteriors `found`, of truths of `kinds` [N]; errors are those between truths."""
    figures = {"truths": float(len(kinds))}
    disks = torch.isin(kinds, torch.tensor([KINDS.index(kind) for kind in DISKS]))
    squares, evidences, pixelwise = {}, {}, {}
    for name, judgements in found.items():
        below = torch.stack([each.below for each in judgements])
        squares[name] = torch.tensor([each.chi2 for each in judgements], dtype=torch.float64)
        evidences[name] = torch.tensor([each.log_partition for each in judgements], dtype=torch.float64)
        for percent in LEVELS:
            kept = inside(below, percent)
            whole = kept[:, :pixels].mean(1)
            pixelwise[percent, name] = whole
            figures[f"coverage_{percent}_{name}"] = float(whole.mean())
            figures[f"coverage_{percent}_{name}_error"] = float(whole.std()) / math.sqrt(len(whole))
            figures[f"disks_coverage_{percent}_{name}"] = float(whole[disks].mean())
            figures[f"flux_coverage_{percent}_{name}"] = float(kept[:, pixels].mean())
            for ring, share in enumerate(kept[:, pixels + 1 :].mean(0).tolist()):
                figures[f"ring{ring}_coverage_{percent}_{name}"] = share
        figures[f"chi2_{name}"] = float(squares[name].mean())
        figures[f"chi2_{name}_error"] = float(squares[name].std()) / math.sqrt(len(kinds))
    told = squares["wrong"] > squares["right"].quantile(0.95)
    figures["told_by_chi2"] = float(told.double().mean())
    figures |= {
        f"untold_coverage_{percent}_wrong": float(pixelwise[percent, "wrong"][~told].mean()) for percent in LEVELS
    }
    gain = evidences["right"] - evidences["wrong"]
    figures |= {"told_by_evidence": float((gain > 0).double().mean()), "evidence_gain": float(gain.median())}
    return figures


def show(figures: dict[str, float]) -> None:
    """Prints the table."""
    names = {"pixels": "coverage", "pixels, discs and rings": "disks_coverage", "total flux": "flux_coverage"}
    names |= {
        f"flux within {low} to {high} pixels": f"ring{ring}_coverage"
        for ring, (low, high) in enumerate(pairwise(RINGS))
    }
    columns = [f"{level} %, {PRIORS[kind]}" for level in LEVELS for kind in PRIORS]
    print(f"{figures['truths']:.0f} truths of {PRIORS['right']}\n\n| | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for label, name in names.items():
        shares = [100 * figures[f"{name}_{level}_{kind}"] for level in LEVELS for kind in PRIORS]
        print(f"| {label} | {' | '.join(f'{share:.1f}' for share in shares)} |")
    for kind in PRIORS:
        error = 100 * figures[f"coverage_90_{kind}_error"]
        print(f"\n{PRIORS[kind]}: chi2 {figures[f'chi2_{kind}']:.3f} +- {figures[f'chi2_{kind}_error']:.3f}, ", end="")
        print(f"error of the coverage of pixels at 90 % {error:.1f}")
    print(
        f"\nchi2 under {PRIORS['wrong']} is above that of 95 % of truths under {PRIORS['right']}: "
        f"{100 * figures['told_by_chi2']:.0f} %; log Z is lower: {100 * figures['told_by_evidence']:.0f} %, "
        f"median {figures['evidence_gain']:.1f} nats\npixels of the truths of which chi2 does not tell: "
        + ", ".join(f"{100 * figures[f'untold_coverage_{level}_wrong']:.1f} in {level} %" for level in LEVELS)
    )


if __name__ == "__main__":
    main()
