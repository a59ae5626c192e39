"""Noise whose density is learned: with exact denoisers it is that of the closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.denoising_error import DenoisingError
from diffusion.field_denoiser import FieldDenoiser
from diffusion.flow_density import FINEST, FlowDensity
from diffusion.registry import make_denoiser
from diffusion.stored_prior import StoredPrior, save_prior
from envs import make_problem
from envs.information import information
from envs.likelihoods import (
    CorrelatedGaussianLikelihood,
    DifferentiableLikelihood,
    LearnedNoiseLikelihood,
    SimulableLikelihood,
    StandardisedLikelihood,
    joint,
)
from envs.operators import Matrix, Separable

TAU = math.tan(FINEST)  # noise of the density, in standard deviations of the noise
MATRIX = torch.tensor([[1.0, 0.5], [0.2, -1.0], [0.3, 0.3]])
COVARIANCE = torch.tensor([[1.0, 0.6, 0.2], [0.6, 1.2, 0.5], [0.2, 0.5, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


class Bent(torch.nn.Module):
    """sinh(A x), which is not linear."""

    measurement_shape = (3,)

    def forward(self, value):
        return Matrix(MATRIX)(value).sinh()


def _gaussian(operator, scale=0.7, **options):
    return LearnedNoiseLikelihood(
        operator, FlowDensity(GaussianDenoiser(MEAN, COVARIANCE), (3,), 1.0), scale, **options
    )


def test_with_the_exact_denoiser_of_a_periodic_field_it_is_correlated_gaussian_noise(generator):
    down, right = (torch.fft.fftfreq(size, dtype=torch.float64) for size in (6, 8))
    power = 0.05 / (0.05 + down[:, None].square() + right.square())
    data_std = float(power.mean().sqrt())
    whole = Separable((1, 6, 8), torch.eye(6), torch.eye(8))
    value, measurement = (torch.randn(4, 1, 6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = CorrelatedGaussianLikelihood(whole, 9 * (power + (TAU * data_std) ** 2))
    expected = exact.log_prob(value, measurement)
    for spacing in (None, 2):
        density = FlowDensity(FieldDenoiser(power), (1, 6, 8), data_std, spacing=spacing)
        learned = LearnedNoiseLikelihood(whole, density, 3.0)
        assert learned.log_prob(value, measurement).tolist() == pytest.approx(expected.tolist(), abs=2e-3)
    whitened = exact.standardised(value, measurement).square().flatten(1).sum(1)
    assert learned.standardised(value, measurement).square().flatten(1).sum(1).tolist() == pytest.approx(
        whitened.tolist(), rel=1e-3
    )


def test_of_a_dense_covariance_behind_a_matrix_it_is_the_multivariate_normal(generator):
    value, measurement = (torch.randn(9, size, generator=generator, dtype=torch.float64) for size in (2, 3))
    residual = measurement - value @ MATRIX.double().T - 0.7 * MEAN
    covariance = 0.49 * (COVARIANCE + TAU**2 * torch.eye(3).double())
    expected = stats.multivariate_normal(np.zeros(3), covariance.numpy()).logpdf(residual.numpy())
    likelihood = _gaussian(Matrix(MATRIX))
    assert likelihood.log_prob(value, measurement).numpy() == pytest.approx(expected, abs=1e-3)
    assert isinstance(likelihood, DifferentiableLikelihood) and isinstance(likelihood, SimulableLikelihood)
    assert isinstance(likelihood, StandardisedLikelihood)
    both = joint([likelihood, likelihood])
    assert both.log_prob(value, torch.cat([measurement, measurement], 1)).numpy() == pytest.approx(
        2 * expected, abs=2e-3
    )


def test_noise_of_two_kinds_integrates_to_one_over_y_and_has_the_density_of_the_mixture():
    means = torch.tensor([[-1.0, 0.0], [1.5, 0.5]], dtype=torch.float64)
    mixture = MixtureDenoiser(means, 0.09, torch.tensor([0.3, 0.7]).log())
    data_std = 0.9
    likelihood = LearnedNoiseLikelihood(Matrix(torch.eye(2)), FlowDensity(mixture, (2,), data_std), 2.0)
    axis = torch.linspace(-6.0, 8.0, 70, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    value = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    found = likelihood.log_prob(value.expand(len(y), 2), y)
    assert float(found.exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=2e-3)
    noised = MixtureDenoiser(means, 0.09 + (TAU * data_std) ** 2, mixture.log_weights)
    expected = noised.log_prob((y - value) / 2) - 2 * math.log(2)
    likely = expected > expected.max() - 12
    assert found[likely].numpy() == pytest.approx(expected[likely].numpy(), abs=0.01)


@pytest.mark.parametrize("operator", [Matrix(MATRIX), Bent()])
def test_the_gradient_and_the_information_are_those_of_the_noise_with_the_level_that_they_allow_for(
    operator, generator
):
    value, measurement = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (2, 3))
    likelihood = _gaussian(operator, score_level=0.2)
    noise = torch.distributions.MultivariateNormal(0.7 * MEAN, 0.49 * (COVARIANCE + 0.04 * torch.eye(3).double()))
    leaf = value.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(noise.log_prob(measurement - operator(leaf)).sum(), leaf)
    assert likelihood.gradient(value, measurement).numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)
    slopes = torch.func.vmap(torch.func.jacrev(lambda x: operator(x[None])[0]))(value)
    products = slopes.mT @ noise.precision_matrix @ slopes
    vector = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    found = information(likelihood, value, measurement)(vector)
    assert found.numpy() == pytest.approx((products @ vector[:, :, None])[..., 0].numpy(), rel=1e-9, abs=1e-9)
    near = _gaussian(operator, score_level=0.01)
    ahead, behind = (near.log_prob(value + sign * 1e-3 * vector, measurement) for sign in (1, -1))
    slope = (near.gradient(value, measurement) * vector).sum(1)
    assert slope.numpy() == pytest.approx(((ahead - behind) / 2e-3).numpy(), rel=2e-3, abs=2e-3)


def test_what_it_simulates_has_its_density(generator):
    """E_y[p(y | x') / p(y | x)] = 1, which fails where noise and density disagree."""
    likelihood, count = _gaussian(Matrix(MATRIX)), 4_000
    value = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    rows = value.expand(count, 2)
    drawn = likelihood.sample(rows, generator)
    near = rows + 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    ratio = (likelihood.log_prob(near, drawn) - likelihood.log_prob(rows, drawn)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / count**0.5)
    assert float(ratio.std()) > 0.1
    chi2 = likelihood.standardised(rows, drawn).square().mean()
    assert float(chi2) == pytest.approx(1, abs=5 * (2 / (3 * count)) ** 0.5)


def test_x_that_is_not_finite_is_impossible_and_what_does_not_fit_is_refused():
    likelihood = _gaussian(Matrix(MATRIX))
    value = torch.tensor([[1.0, math.inf], [0.0, 1.0]])
    found = likelihood.log_prob(value, torch.zeros(2, 3))
    assert float(found[0]) == -math.inf and math.isfinite(float(found[1])) and found.dtype == torch.float32
    density = FlowDensity(GaussianDenoiser(MEAN, COVARIANCE), (3,), 1.0)
    with pytest.raises(ValueError, match=r"of the measurement's shape \[2\], its prior is over \[3\]"):
        LearnedNoiseLikelihood(Matrix(torch.eye(2)), density)
    with pytest.raises(ValueError, match=r"scale must be positive and finite, got 0.0"):
        LearnedNoiseLikelihood(Matrix(MATRIX), density, 0.0)
    with pytest.raises(ValueError, match="score_level must be positive and finite, got nan"):
        LearnedNoiseLikelihood(Matrix(MATRIX), density, 1.0, math.nan)


TINY = {"galaxies": 12, "pixels": 8, "num_steps": 3, "noise": "learned"}


@pytest.fixture
def folder(tmp_path):
    """A stored prior over 8 x 8 pixels that is white noise of standard deviation 2: F = 0."""
    description = {"kind": "network", "network": {"kind": "plane", "width": 2, "depth": 1}}
    error = DenoisingError(data_std=2.0, log_snr=(-2.0, 1.0), mean_squared=(3.9, 0.5))
    stored = StoredPrior(event_shape=(1, 8, 8), data_std=2.0, denoiser=description, denoising_error=error)
    denoiser = make_denoiser(description, (1, 8, 8), 2.0)
    torch.nn.init.zeros_(denoiser.network.head.weight)
    torch.nn.init.zeros_(denoiser.network.head.bias)
    return save_prior(tmp_path / "noise", stored, denoiser, "# A card\n")


def test_a_galaxy_in_white_noise_that_was_learned_is_one_in_gaussian_noise(folder, generator):
    learned = make_problem("psf-deconvolution", TINY | {"noise_prior": str(folder), "noise_std": 0.3})
    exact = make_problem("psf-deconvolution", TINY | {"noise": "gaussian", "noise_std": 0.3})
    x = learned.prior.denoiser.sample(4, generator).float()
    measurement = exact.measurements.expand(4, 1, 8, 8)
    expected = exact.log_likelihood_of(x, measurement)
    assert learned.log_likelihood_of(x, measurement).numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert learned.simulable and learned.shiftable and not learned.exact
    step = torch.full((4,), 1)
    for guidance in ("gradient", "shift"):
        mine, theirs = (
            torch.cat(replace(problem, guidance=guidance).guide(x, step, measurement)) for problem in (learned, exact)
        )
        # F = 0 has noise of variance one and the level's more: the guidance is a percent smaller
        assert mine.numpy() == pytest.approx(theirs.numpy(), rel=0.02, abs=0.02 * float(theirs.abs().max()))
    assert float(learned.measurements.std()) == pytest.approx(float(exact.measurements.std()), rel=0.3)


def test_a_noise_prior_that_is_none_or_of_other_pixels_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"measurement's shape \[1, 16, 16\], its prior is over \[1, 8, 8\]"):
        make_problem("psf-deconvolution", TINY | {"noise_prior": str(folder), "pixels": 16})
    with pytest.raises(ValueError, match=r"noise_prior must be a stored prior .* does not exist"):
        make_problem("psf-deconvolution", TINY | {"noise_prior": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=r"noise_prior must be a stored prior .* no prior named 'hst-nose' ships"):
        make_problem("psf-deconvolution", TINY | {"noise_prior": "hst-nose"})
    with pytest.raises(ValueError, match=r"noise must be poisson-gaussian, gaussian or learned, got 'shot'"):
        make_problem("psf-deconvolution", TINY | {"noise": "shot"})
