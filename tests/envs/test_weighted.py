"""Importance sampling as the reference: against the closed form of a mixture, and where there is nothing to find."""

import math

import pytest
import torch

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from envs.exact.mixture import condition_mixture
from envs.exact.weighted import WeightedPosterior, weighted_posterior
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix


@pytest.mark.parametrize(("dim", "noise_std"), [(3, 0.05), (5, 0.3)])
def test_the_evidence_and_the_moments_are_those_of_the_closed_form(dim, noise_std, generator):
    """100 components, of which a sharp measurement leaves a few; the prior's own draws are worth little."""
    means = 3 * torch.randn(100, dim, generator=generator, dtype=torch.float64)
    prior = MixtureDenoiser(means, 0.2)
    matrix = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(matrix, (dim,)), noise_std)
    measurement = likelihood.sample(prior.sample(1, generator), generator)
    exact = condition_mixture(means, prior.covariance, prior.log_weights, matrix, noise_std, measurement[0], (dim,))
    own = likelihood.log_prob(prior.sample(20_000, generator), measurement.expand(20_000, 2))
    assert float((2 * own.logsumexp(0) - (2 * own).logsumexp(0)).exp()) < 1_000

    def log_likelihood(value):
        return likelihood.log_prob(value, measurement.expand(len(value), 2))

    found = weighted_posterior(prior, log_likelihood, draws=10_000)
    assert found.effective_number > 1_000
    assert found.log_partition == pytest.approx(exact.log_partition, abs=4 * found.log_partition_error)
    errors = (exact.variance / found.effective_number).sqrt()
    assert bool(((found.mean - exact.mean).abs() < 5 * errors).all())
    assert found.variance.numpy() == pytest.approx(exact.variance.numpy(), rel=0.25)
    drawn = found.sample(4_000, generator)
    assert bool(((drawn.mean(0) - found.mean).abs() < 5 * (found.variance / 4_000).sqrt()).all())


def test_the_standard_error_is_that_of_repetitions():
    prior = GaussianDenoiser(torch.zeros(2), 1.0)
    found = [
        weighted_posterior(prior, lambda value: -0.5 * (value - 1).square().sum(1), draws=4_000, seed=seed)
        for seed in range(40)
    ]
    values = torch.tensor([each.log_partition for each in found])
    exact = -0.5 - math.log(2)  # N(1; 0, 2) twice, less the constant of the unnormalised likelihood
    error = found[0].log_partition_error
    assert float(values.mean()) == pytest.approx(exact, abs=4 * error / math.sqrt(40))
    assert float(values.std()) == pytest.approx(error, rel=0.5)


def test_a_likelihood_that_is_zero_everywhere_is_refused_and_nan_is_impossible():
    prior = GaussianDenoiser(torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match="none of 100 draws has a likelihood above zero"):
        weighted_posterior(prior, lambda value: torch.full((len(value),), -torch.inf), draws=100)
    half = weighted_posterior(prior, lambda value: torch.where(value[:, 0] > 0, 0.0, torch.nan))
    assert half.log_partition == pytest.approx(-math.log(2), abs=4 * half.log_partition_error)
    assert float(half.sample(1_000).min()) > 0


def test_equal_weights_are_worth_all_draws():
    even = WeightedPosterior(torch.zeros(10, 1), torch.full((10,), -math.log(10)).double(), 0.0)
    assert even.effective_number == pytest.approx(10) and even.log_partition_error == pytest.approx(0, abs=1e-7)
