r"""Whether posteriors of many measurements are calibrated: tests of accuracy with random points (TARP).

For pairs (x_i, y_i) of prior and likelihood, posterior samples x_ij at y_i and reference points r_i that depend on y_i
at most, the credibility of x_i is

    f_i = (1 / S) #{j: |x_ij - r_i| < |x_i - r_i|},

and the expected coverage ECP(a) = P(f < a) equals a at every a if and only if the posteriors are right, when that holds
for every choice of r (Lemos et al. 2023, arXiv 2302.03026). Points that do not depend on y would let the prior pass for
the posterior; here r_i is the x of the pair whose measurement is nearest to y_i. A largest deviation of 1.36 / sqrt(N)
is reached by chance in one test of twenty with N pairs (Kolmogorov and Smirnov).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Calibration", "calibrate", "credibility"]


def credibility(samples: Tensor, truth: Tensor, reference: Tensor) -> Tensor:
    """[N] float64 f of `truth` [N, *D] for `samples` [N, S, *D] and `reference` [N, *D]; see the module's docstring.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if samples.ndim < 3 or samples[:, 0].shape != truth.shape or reference.shape != truth.shape:
        raise ValueError(
            "expected samples [N, S, *D] and truth and reference [N, *D], got "
            f"{[*samples.shape]}, {[*truth.shape]} and {[*reference.shape]}"
        )
    centre = reference.double().flatten(1)
    of_samples = (samples.double().flatten(2) - centre[:, None]).norm(dim=2)
    of_truth = (truth.double().flatten(1) - centre).norm(dim=1)
    return (of_samples < of_truth[:, None]).double().mean(1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Expected coverage of posteriors."""

    pairs: int
    """Number N of pairs (x, y)."""
    level: Tensor
    """[S] share of pairs that exact posteriors cover."""
    coverage: Tensor
    """[S] share that these cover."""

    @property
    def deviation(self) -> float:
        """Largest |coverage - level|: 0 for exact posteriors of infinitely many pairs."""
        return float((self.coverage - self.level).abs().max())

    @property
    def by_chance(self) -> float:
        """Deviation that exact posteriors exceed in one test of twenty."""
        return 1.36 / math.sqrt(self.pairs)


def calibrate(samples: Tensor, truth: Tensor, measurement: Tensor) -> Calibration:
    """Coverage of `samples` [N, S, *D] of the posteriors at `measurement` [N, *Y] of `truth` [N, *D], of the prior."""
    count, draws = len(samples), samples.shape[1]
    if len(measurement) != count or count < 2:
        raise ValueError(
            f"expected measurements [N, *Y] of two or more pairs, got {len(measurement)} and {count} pairs"
        )
    flat = measurement.double().flatten(1)
    distance = torch.cdist(flat, flat).fill_diagonal_(math.inf)
    value = credibility(samples, truth, truth[distance.argmin(1)])
    # Exact posteriors give f = k / S, k = 0..S, equal probabilities: k + 1 of S + 1 lie below a middle between two.
    between = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    level = torch.arange(1, draws + 1, dtype=torch.float64) / (draws + 1)
    return Calibration(pairs=count, level=level, coverage=(value[:, None] < between).double().mean(0))
