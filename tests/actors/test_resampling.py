"""Weights of a population: effective sample size, systematic draws, correlation."""

from __future__ import annotations

import pytest
import torch

from actors.resampling import correlation, effective_fraction, systematic


def test_the_effective_sample_size_of_equal_and_of_one_sided_weights(generator):
    assert effective_fraction(torch.full((8,), -700.0)) == pytest.approx(1.0)
    assert effective_fraction(torch.tensor([0.0, -900.0, -900.0, -900.0])) == pytest.approx(0.25)
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    expected = float(weights.sum() ** 2 / (50 * weights.square().sum()))
    assert effective_fraction(weights.log() + 300) == pytest.approx(expected)


def test_systematic_draws_are_off_by_less_than_one_and_right_on_average(generator):
    weights = torch.tensor([0.02, 0.5, 0.0, 0.31, 0.17])
    counts = torch.stack([systematic(weights, generator).bincount(minlength=5) for _ in range(2000)]).double()
    expected = 5 * weights.double() / weights.sum()
    assert float((counts - expected).abs().max()) < 1
    assert torch.allclose(counts.mean(0), expected, atol=0.05)
    assert float(counts[:, 2].max()) == 0


def test_the_correlation_of_paths_that_stay_that_half_move_and_that_are_new(generator):
    before, noise = torch.randn(2, 40_000, 2, generator=generator, dtype=torch.float64)
    assert correlation(before, before) == pytest.approx(1.0)
    assert correlation(before, 0.6 * before + 0.8 * noise) == pytest.approx(0.6, abs=0.02)
    assert correlation(before, noise) == pytest.approx(0.0, abs=0.02)
