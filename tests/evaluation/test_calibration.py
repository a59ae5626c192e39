"""TARP against a loop, the closed form of exact posteriors, and posteriors that are known to be wrong."""

import math

import pytest
import torch

from evaluation.calibration import calibrate, credibility

PAIRS, DRAWS = 4_000, 50
LIMIT = 1.63 / math.sqrt(PAIRS)  # Kolmogorov's 99 % point


def _pairs(width=1.0, shift=0.0, seed=0):
    """x ~ N(0, I) in 3-D, y = x + noise: samples of N(y / 2 + shift, width^2 / 2), exact for 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(PAIRS, 3, generator=generator)
    measurement = truth + torch.randn(PAIRS, 3, generator=generator)
    noise = torch.randn(PAIRS, DRAWS, 3, generator=generator)
    return measurement[:, None] / 2 + shift + width * noise / math.sqrt(2), truth, measurement


def test_credibility_is_the_share_of_samples_nearer_to_the_reference_than_the_truth_by_loops():
    samples, truth, _ = _pairs()
    reference = truth.roll(7, 0)
    value = credibility(samples, truth, reference)
    for row in range(20):
        nearer = [
            bool((sample - reference[row]).norm() < (truth[row] - reference[row]).norm()) for sample in samples[row]
        ]
        assert float(value[row]) == pytest.approx(sum(nearer) / DRAWS)


@pytest.mark.parametrize("seed", range(3))
def test_exact_posteriors_deviate_by_chance_alone(seed):
    assert calibrate(*_pairs(seed=seed)).deviation < LIMIT


@pytest.mark.parametrize(("width", "shift"), [(0.6, 0.0), (1.6, 0.0), (1.0, 0.7)])
def test_posteriors_too_narrow_too_wide_or_off_deviate(width, shift):
    assert calibrate(*_pairs(width, shift)).deviation > 2 * LIMIT


def test_the_prior_does_not_pass_for_the_posterior():
    _, truth, measurement = _pairs()
    samples = torch.randn(PAIRS, DRAWS, 3, generator=torch.Generator().manual_seed(5))
    assert calibrate(samples, truth, measurement).deviation > 5 * LIMIT


def test_with_few_samples_the_levels_are_those_that_exact_posteriors_reach():
    """With one sample f is 0 or 1 with probability one half each."""
    samples, truth, measurement = _pairs()
    found = calibrate(samples[:, :1], truth, measurement)
    assert found.level.tolist() == [0.5] and found.deviation < LIMIT and found.by_chance == 1.36 / math.sqrt(PAIRS)


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"expected samples \[N, S, \*D\] .* got \[2, 5, 3\], \[3, 3\] and \[2, 3\]"):
        credibility(torch.zeros(2, 5, 3), torch.zeros(3, 3), torch.zeros(2, 3))
