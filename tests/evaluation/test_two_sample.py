import math

import pytest
import torch
from scipy import stats

from evaluation.two_sample import classifier_two_sample


def _normal(seed, count=2_000, dim=2):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_samples_of_one_distribution_cannot_be_told_apart():
    assert classifier_two_sample(_normal(0), _normal(1)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shifted_gaussian_is_told_apart_as_often_as_by_the_likelihood_ratio(shift):
    moved = _normal(1)
    moved[:, 0] += shift
    best = stats.norm.cdf(shift / 2)
    assert classifier_two_sample(7 * _normal(0) + 3, 7 * moved + 3) == pytest.approx(best, abs=0.03)


def test_a_wider_gaussian_is_told_apart_by_its_radius():
    square = 2 * math.log(4) / (1 - 1 / 4)  # beyond it, in the plane, twice the deviation is likelier
    best = 0.5 * (1 - math.exp(-square / 2) + math.exp(-square / 8))
    assert classifier_two_sample(_normal(0), 2 * _normal(1)) == pytest.approx(best, abs=0.03)


def test_samples_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"equal size, at least 10, are needed, got shapes \[\(2000, 2\), \(20, 2\)\]"):
        classifier_two_sample(_normal(0), _normal(0, 20))
    with pytest.raises(ValueError, match="every number of both samples must be finite"):
        classifier_two_sample(_normal(0), _normal(0) * torch.nan)
