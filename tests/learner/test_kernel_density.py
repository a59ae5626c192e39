"""A kernel density at rest is the mixture that was fitted."""

import math

import pytest
import torch

from diffusion.stored_prior import load_prior, read_prior
from envs.data import Dataset
from learner.kernel_density import kernel_density, store_kernel_density


@pytest.fixture
def normal(generator):
    draws = 2.0 * torch.randn(1_500, 2, generator=generator)
    return Dataset(name="normal", train=draws[:1_000], held_out=draws[1_000:], split="", source="", licence="")


def test_the_width_for_a_gaussian_is_near_silvermans(normal):
    """4^(1/6) / (d + 2)^(1/6) n^(-1/6) of its standard deviation in d = 2 dimensions, n = 1,000."""
    width = float(kernel_density(normal.train, normal.held_out).eigenvalues[0].sqrt())
    assert width == pytest.approx(2.0 * 1_000 ** (-1 / 6), rel=0.35)


def test_a_stored_kernel_density_has_its_density_and_draws(normal, tmp_path, generator):
    folder = store_kernel_density(normal, 300, tmp_path / "p")
    prior = load_prior(folder, 10)
    variance = float(prior.denoiser.eigenvalues[0])
    assert variance == pytest.approx(read_prior(folder).denoiser["variance"])
    value = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    terms = -0.5 * torch.cdist(value, prior.denoiser.means.double()).square() / variance
    expected = terms.logsumexp(1) - math.log(300 * 2 * math.pi * variance)
    assert prior.denoiser.log_prob(value).numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    assert len(prior.denoiser.means) == 300
    assert float(prior.denoiser.sample(4_000, generator).std()) == pytest.approx(prior.data_std, rel=0.06)
    assert float(prior.sample(1_000, generator).std()) == pytest.approx(prior.data_std, rel=0.1)
    with pytest.raises(ValueError, match=r"within 1..1000, the draws of 'normal', got 1001"):
        store_kernel_density(normal, 1_001, tmp_path / "q")
