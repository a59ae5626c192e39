"""The benchmark of a wrong prior: its exact intervals and residuals are those of draws, and tell right from wrong."""

import math

import pytest
import torch

from benchmarks.misspecified import figures_of, inside, judged, linear_numbers
from diffusion.denoiser import MixtureDenoiser
from envs.exact.whitened import condition_on_weighted

SIZE = 3


def _density(generator, spread=1.0):
    means = 2 * torch.randn(4, SIZE**2, generator=generator, dtype=torch.float64)
    root = torch.randn(SIZE**2, SIZE**2, generator=generator, dtype=torch.float64)
    covariance = spread**2 * (0.1 * root @ root.T + 0.05 * torch.eye(SIZE**2, dtype=torch.float64))
    return MixtureDenoiser(means, covariance, event_shape=(1, SIZE, SIZE))


def _measured(density, count, generator):
    """(matrix [4, 9], noise [4], measurements, truths) of draws of `density`."""
    matrix = torch.randn(4, SIZE**2, generator=generator, dtype=torch.float64)
    std = torch.tensor([0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
    truths = density.sample(count, generator).flatten(1)
    noise = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return matrix, std, truths @ matrix.T + std * noise, truths


def test_linear_numbers_are_pixels_their_sum_and_rings_that_do_not_overlap():
    numbers = linear_numbers(6, (0, 1, 2))
    assert numbers.shape == (36 + 1 + 2, 36) and numbers[:36].tolist() == torch.eye(36).tolist()
    assert numbers[36].tolist() == [1.0] * 36
    assert numbers[37].nonzero().tolist() == [[3 * 6 + 3]]  # the middle, as that of the field of view
    assert numbers[38].sum() == 8  # four neighbours and four at the square root of 2


def test_a_judgement_is_that_of_exact_draws(generator):
    density = _density(generator)
    matrix, std, (y,), (truth,) = _measured(density, 1, generator)
    numbers = linear_numbers(SIZE, (0, 1, 2))
    found = judged(density, matrix, std, y, truth, numbers)
    posterior = condition_on_weighted(density, matrix, std, y)
    draws = posterior.sample(40_000, generator).flatten(1)
    below = ((draws @ numbers.T) < numbers @ truth).double().mean(0)
    assert found.below.numpy() == pytest.approx(below.numpy(), abs=4 * 0.5 / 200)
    squares = (((y - draws @ matrix.T) / std).square()).mean(1)
    assert found.chi2 == pytest.approx(float(squares.mean()), abs=4 * float(squares.std()) / 200)
    assert found.log_partition == posterior.log_partition


def test_the_right_prior_covers_as_it_says_and_a_narrow_or_shifted_one_does_not(generator):
    """Of 400 truths; errors from the spread between them."""
    density = _density(generator)
    matrix, std, seen, truths = _measured(density, 400, generator)
    numbers = linear_numbers(SIZE, (0, 1, 2, 3))
    wrong = MixtureDenoiser(density.means + 1, density.covariance / 4, event_shape=(1, SIZE, SIZE))
    found = {
        name: [judged(prior, matrix, std, y, truth, numbers) for y, truth in zip(seen, truths, strict=True)]
        for name, prior in (("right", density), ("wrong", wrong))
    }
    figures = figures_of(found, torch.zeros(400, dtype=torch.int64), SIZE**2)
    for percent in (50, 90, 95):
        error = figures[f"coverage_{percent}_right_error"]
        assert figures[f"coverage_{percent}_right"] == pytest.approx(percent / 100, abs=4 * error) and error < 0.02
        share = percent / 100
        alone = 4 * math.sqrt(share * (1 - share) / 400)
        assert figures[f"flux_coverage_{percent}_right"] == pytest.approx(share, abs=alone)
        assert figures[f"disks_coverage_{percent}_right"] == figures[f"coverage_{percent}_right"]  # all are of kind 0
        assert figures[f"coverage_{percent}_wrong"] < share - 0.1
    assert figures["chi2_right"] == pytest.approx(1, abs=4 * figures["chi2_right_error"])
    assert figures["chi2_wrong"] > 1 + 4 * figures["chi2_wrong_error"]
    assert figures["told_by_evidence"] > 0.6 and figures["evidence_gain"] > 0 and figures["truths"] == 400


def test_the_ends_of_an_interval_are_those_of_the_distribution_function():
    below = torch.tensor([0.051, 0.06, 0.5, 0.94, 0.96], dtype=torch.float64)
    assert inside(below, 90).tolist() == [1, 1, 1, 1, 0] and inside(below, 50).tolist() == [0, 0, 1, 0, 0]
