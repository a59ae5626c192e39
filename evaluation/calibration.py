r"""Whether posteriors of many measurements are calibrated: tests of accuracy with random points (TARP).

For pairs (x_i, y_i) of prior and likelihood, posterior samples x_ij at y_i and reference points r_i that do not depend
on x_i, the credibility of x_i is

    f_i = (1 / S) #{j: |x_ij - r_i| < |x_i - r_i|},

and the expected coverage ECP(a) = P(f < a) equals a at every a if and only if the posteriors are right, when that holds
for every choice of r (Lemos et al. 2023, arXiv 2302.03026). A largest deviation of 1.36 / sqrt(N) is reached by chance
in one test of twenty with N pairs (Kolmogorov and Smirnov).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["credibility", "expected_coverage", "tarp_deviation"]


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


def expected_coverage(value: Tensor, levels: Tensor) -> Tensor:
    """[L] share of the credibilities `value` [N] below each of `levels` [L]; half of those equal to it count."""
    below = (value[:, None] < levels).double() + 0.5 * (value[:, None] == levels).double()
    return below.mean(0)


def tarp_deviation(samples: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> float:
    """Largest |ECP(a) - a| over a = k / S: 0 for exact posteriors of infinitely many pairs.

    `samples` [N, S, *D] are of the posteriors at measurements of `truth` [N, *D], which has to be of the prior. The
    reference point of one pair is the truth of another.
    """
    count, draws = len(samples), samples.shape[1]
    shift = int(torch.randint(1, count, (), generator=generator)) if count > 1 else 0
    value = credibility(samples, truth, truth.roll(shift, 0))
    # With S samples f is k / S, k = 0..S with equal probability: the middles between these values are levels exactly.
    levels = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    expected = torch.arange(1, draws + 1, dtype=torch.float64) / (draws + 1)
    return float((expected_coverage(value, levels) - expected).abs().max())
