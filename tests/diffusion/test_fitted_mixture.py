"""A mixture in the place of a prior that is known by its draws."""

import pytest
import torch

from diffusion.denoiser import MixtureDenoiser
from diffusion.fitted_mixture import fitted_mixture


def test_draws_of_a_gaussian_have_its_mean_and_covariance(generator):
    factor = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    drawn = 2 + torch.randn(5_000, 5, generator=generator, dtype=torch.float64) @ factor.T
    found = fitted_mixture(drawn[:4_000].reshape(-1, 1, 5), drawn[4_000:].reshape(-1, 1, 5))
    assert found.means.shape == (1, 5) and found.event_shape == (1, 5)
    covariance = factor @ factor.T
    scale = covariance.diagonal().sqrt()
    assert float(((found.means[0] - 2) / scale).abs().max()) < 5 / 4_000**0.5
    assert float(((found.covariance - covariance) / torch.outer(scale, scale)).abs().max()) < 5 * (2 / 4_000) ** 0.5


def test_of_modes_far_apart_a_kernel_density_is_left_and_it_is_near_the_truth(generator):
    truth = MixtureDenoiser(torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), 0.1)
    drawn = truth.sample(1_200, generator)
    found = fitted_mixture(drawn[:1_000], drawn[1_000:])
    assert len(found.means) == 1_000
    fresh = truth.sample(4_000, generator)
    assert 0 < float((truth.log_prob(fresh) - found.log_prob(fresh)).mean()) < 0.15  # nats


def test_a_direction_without_any_spread_gets_a_little(generator):
    drawn = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    drawn[:, 3] = drawn[:, 0]
    found = fitted_mixture(drawn[:250], drawn[250:])
    assert 0 < float(found.eigenvalues.min()) < 1e-3 and bool(found.log_prob(drawn).isfinite().all())


@pytest.mark.parametrize("drawn", [torch.ones(20, 3), torch.full((20, 3), torch.nan)])
def test_draws_that_say_nothing_are_refused(drawn):
    with pytest.raises(ValueError, match="draws must be finite and differ, got 10 of standard deviation"):
        fitted_mixture(drawn[:10], drawn[10:])
