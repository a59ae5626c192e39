"""Gaussian fields: the transform, the denoiser and the posterior against dense matrices."""

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.denoiser import GaussianDenoiser
from diffusion.field_denoiser import FieldDenoiser, hartley, power_law
from envs import make_problem
from envs.exact.mixture import condition_mixture


@pytest.fixture(scope="module")
def problem():
    return make_problem("gaussian-field", {"size": 6, "blur": 0.6, "num_steps": 10})


def _covariance(problem):
    unit = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
    return hartley(problem.prior.denoiser.power * hartley(unit)).flatten(1)


def test_the_hartley_transform_is_orthonormal_and_its_own_inverse(generator):
    value = torch.randn(3, 1, 6, 7, generator=generator, dtype=torch.float64)
    assert hartley(hartley(value)).numpy() == pytest.approx(value.numpy(), abs=1e-12)
    assert float(hartley(value).norm()) == pytest.approx(float(value.norm()))


def test_the_denoiser_is_that_of_a_dense_covariance(problem, generator):
    denoiser, dense = problem.prior.denoiser, GaussianDenoiser(torch.zeros(36), _covariance(problem))
    state = torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    alpha, sigma = torch.linspace(0, 0.9, 5, dtype=torch.float64), torch.linspace(1, 0.4, 5, dtype=torch.float64)
    expected = dense(state.flatten(1), alpha, sigma)
    assert denoiser(state, alpha, sigma).flatten(1).numpy() == pytest.approx(expected.numpy(), abs=1e-10)
    vector = torch.randn(5, 36, generator=generator, dtype=torch.float64)
    _, pulled = denoiser.pull_back(state, alpha, sigma, lambda value: vector.reshape(value.shape))
    _, expected = dense.pull_back(state.flatten(1), alpha, sigma, lambda value: vector)
    assert pulled.flatten(1).numpy() == pytest.approx(expected.numpy(), abs=1e-10)
    assert denoiser.log_prob(state).numpy() == pytest.approx(dense.log_prob(state.flatten(1)).numpy(), rel=1e-10)
    levels = (alpha, sigma)
    assert denoiser.denoising_variance(*levels).numpy() == pytest.approx(dense.denoising_variance(*levels).numpy())
    drawn = denoiser.sample(40_000, generator).flatten(1)
    assert np.cov(drawn.numpy().T) == pytest.approx(_covariance(problem).numpy(), abs=0.04)


def test_the_posterior_is_that_of_dense_matrices(problem, generator):
    exact, likelihood = problem.exact[0], problem.likelihood
    covariance, matrix = _covariance(problem), likelihood.operator.as_matrix()
    dense = condition_mixture(
        torch.zeros(1, 36),
        covariance,
        torch.zeros(1),
        matrix,
        likelihood.noise_std,
        problem.measurements[0].flatten(),
        (1, 6, 6),
    )
    assert exact.log_partition == pytest.approx(dense.log_partition, abs=1e-8)
    assert exact.mean.numpy() == pytest.approx(dense.mean.numpy(), abs=1e-9)
    assert exact.variance.numpy() == pytest.approx(dense.variance.numpy(), abs=1e-9)
    evidence = matrix @ covariance @ matrix.T + likelihood.noise_std**2 * torch.eye(36, dtype=torch.float64)
    expected = stats.multivariate_normal(np.zeros(36), evidence.numpy()).logpdf(problem.measurements[0].flatten())
    assert exact.log_partition == pytest.approx(float(expected), abs=1e-8)
    drawn = exact.sample(40_000, generator).flatten(1)
    assert np.cov(drawn.numpy().T) == pytest.approx(dense.covariance.numpy(), abs=0.03 * float(dense.covariance.max()))


def test_ten_thousand_dimensions_are_few(generator):
    problem = make_problem("gaussian-field", {"num_steps": 5})
    exact = problem.exact[0]
    assert problem.event_shape == (1, 100, 100) and float(problem.truth.std()) == pytest.approx(1, abs=0.2)
    error = (problem.truth.double()[0] - exact.mean).square().mean()
    assert float(error) == pytest.approx(float(exact.variance.mean()), rel=0.1)
    typical = problem.simulate(problem.prior.denoiser.sample(8, generator), generator)
    others = [problem.solve(value)[0].log_partition for value in typical]
    assert exact.log_partition == pytest.approx(np.mean(others), abs=5 * np.std(others))


def test_as_a_mixture_it_has_the_same_density_and_the_same_estimates(generator):
    field = FieldDenoiser(power_law(6, 1.5, 2.0))
    mixture, value = field.as_mixture(), field.sample(4, generator)
    assert value.shape[1:] == mixture.event_shape == (1, 6, 6)
    assert mixture.log_prob(value).numpy() == pytest.approx(field.log_prob(value).numpy(), rel=1e-9)
    alpha, sigma = torch.full((4,), 0.6), torch.full((4,), 0.8)
    assert mixture(value, alpha, sigma).numpy() == pytest.approx(field(value, alpha, sigma).numpy(), abs=1e-6)


def test_a_spectrum_that_is_none_is_refused():
    with pytest.raises(ValueError, match="power must be even"):
        FieldDenoiser(1 + torch.arange(16.0).reshape(4, 4))
    with pytest.raises(ValueError, match=r"positive and finite, got shape \(4,\)"):
        FieldDenoiser(torch.ones(4))
    with pytest.raises(ValueError, match="size must be at least 4"):
        make_problem("gaussian-field", {"size": 2})
