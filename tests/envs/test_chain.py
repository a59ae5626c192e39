r"""The exact posterior of the chain against one big Gaussian over all states at once.

Every state is an affine function of the T + 1 independent noises, so (s_0, ..., s_T, y) is jointly Gaussian with a
dense covariance; conditioning it on y with linear algebra shares nothing with the backward messages under test.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from actors.rollout import rollout
from diffusion.denoiser import GaussianDenoiser
from diffusion.path import denoise_path, path_log_ratio
from diffusion.posterior import ControlPosterior
from diffusion.prior import Prior
from diffusion.schedule import SCHEDULES, make_schedule
from envs import make_problem
from envs.exact.chain import ChainPosterior
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from envs.problem import InverseProblem

DIM, STEPS, NOISE = 3, 6, 0.4
ZERO_SNR = ["vp-linear-zero-snr", "vp-cosine-zero-snr"]
MATRIX = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]], dtype=torch.float64)
MEASUREMENT = torch.tensor([0.75, -1.25], dtype=torch.float64)  # exact in float32
COVARIANCE = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.5, -0.2], [0.0, -0.2, 2.0]], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)


def _problem(schedule):
    denoiser = GaussianDenoiser(MEAN, COVARIANCE)
    options = {"sigma_min": 0.1, "sigma_max": 10.0} if schedule == "ve" else {}
    prior = Prior(denoiser, make_schedule(schedule, STEPS, **options), (DIM,), denoiser.denoising_variance)
    likelihood = GaussianLikelihood(Matrix(MATRIX), NOISE)
    exact = ChainPosterior(prior, MATRIX, NOISE, MEASUREMENT)
    measurements = MEASUREMENT[None].float()
    return InverseProblem(name="chain", prior=prior, likelihood=likelihood, measurements=measurements, exact=(exact,))


def _dense(problem):
    """Moments of all states stacked, (T+1) D numbers, before and after y; log p(y)."""
    alpha, sigma = problem.prior.schedule.alpha.numpy(), problem.prior.schedule.sigma.numpy()
    std, eye = problem.prior.std.numpy(), np.eye(DIM)
    data, centre = COVARIANCE.numpy(), MEAN.numpy()
    root = np.zeros((STEPS + 1, DIM, (STEPS + 1) * DIM))  # states as a matrix times the stacked unit noises
    mean = np.zeros((STEPS + 1, DIM))
    root[0, :, :DIM] = sigma[0] * eye
    for k in range(STEPS):
        gain = alpha[k] * data @ np.linalg.inv(alpha[k] ** 2 * data + sigma[k] ** 2 * eye)  # x^ = centre + gain (...)
        a = (alpha[k] / alpha[k + 1]) * sigma[k + 1] ** 2 / sigma[k] ** 2
        b = alpha[k + 1] - a * alpha[k]
        transition = a * eye + b * gain
        mean[k + 1] = transition @ mean[k] + b * (centre - alpha[k] * gain @ centre)
        root[k + 1] = transition @ root[k]
        root[k + 1, :, (k + 1) * DIM : (k + 2) * DIM] += std[k] * eye
    flat, mean = root.reshape((STEPS + 1) * DIM, -1), mean.reshape(-1)
    covariance = flat @ flat.T
    operator = np.zeros((2, len(mean)))
    operator[:, -DIM:] = MATRIX.numpy()
    innovation = operator @ covariance @ operator.T + NOISE**2 * np.eye(2)
    gain = np.linalg.solve(innovation, operator @ covariance).T
    return SimpleNamespace(
        prior=stats.multivariate_normal(mean, covariance),
        log_partition=stats.multivariate_normal(operator @ mean, innovation).logpdf(MEASUREMENT.numpy()),
        mean=mean + gain @ (MEASUREMENT.numpy() - operator @ mean),
        covariance=covariance - gain @ operator @ covariance,
    )


def _residual(problem, states):
    """log Z + sum of log q - log p less log p(y | x): zero on every path, but for the tilt of the base."""
    exact = problem.exact[0]
    measurement = problem.measurements.expand(len(states), -1)
    ratio = path_log_ratio(exact, states, denoise_path(problem.prior, states), measurement)
    log_likelihood = problem.likelihood.log_prob(states[:, -1], measurement)
    residual = exact.log_partition + ratio.double().sum(1) - log_likelihood.double()
    assert residual.shape == (len(states),)
    return residual


def _base_tilt(exact, prior, states):
    """log q(s_0 | y) - log p(s_0)."""
    start = states[:, 0].double().numpy()
    tilted = stats.multivariate_normal(exact.base_mean.numpy(), exact.base_covariance.numpy()).logpdf(start)
    return tilted - stats.norm(0, float(prior.sigma[0])).logpdf(start).sum(1)


def _paths(problem, origin, generator, count=200):
    """Float64 paths from the prior, an inflated prior, an untrained-and-perturbed control, and the exact posterior."""
    if origin == "exact":
        return problem.exact[0].sample_path(count, generator)
    control = None
    if origin == "control":
        torch.manual_seed(0)
        posterior = ControlPosterior(problem.prior, problem.likelihood.measurement_shape, problem.gradient, hidden=8)
        torch.nn.init.normal_(posterior.network.head.weight)
        control = posterior.control
    rows = torch.zeros(count, dtype=torch.int64)
    inflation = 1.5 if origin == "inflated" else 1.0
    return rollout(problem, control, rows, inflation=inflation, generator=generator).states.double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_evidence_and_moments_are_those_of_the_dense_joint_gaussian(schedule):
    problem = _problem(schedule)
    exact, dense = problem.exact[0], _dense(problem)
    assert exact.log_partition == pytest.approx(dense.log_partition, abs=1e-9)
    assert exact.mean.numpy() == pytest.approx(dense.mean[-DIM:], abs=1e-9)
    assert exact.covariance.numpy() == pytest.approx(dense.covariance[-DIM:, -DIM:], abs=1e-9)
    assert exact.variance.numpy() == pytest.approx(dense.covariance.diagonal()[-DIM:], abs=1e-9)
    assert exact.base_mean.numpy() == pytest.approx(dense.mean[:DIM], abs=1e-8)
    assert exact.base_covariance.numpy() == pytest.approx(dense.covariance[:DIM, :DIM], abs=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_density_of_whole_posterior_paths_is_that_of_the_dense_joint_gaussian(schedule, generator):
    problem = _problem(schedule)
    exact, prior, dense = problem.exact[0], problem.prior, _dense(problem)
    states = exact.sample_path(20, generator)
    measurement = problem.measurements.expand(20, -1)
    ratio = path_log_ratio(exact, states, denoise_path(prior, states), measurement).sum(1).numpy()
    flat = states.flatten(1).numpy()
    expected = stats.multivariate_normal(dense.mean, dense.covariance).logpdf(flat) - dense.prior.logpdf(flat)
    assert ratio + _base_tilt(exact, prior, states) == pytest.approx(expected, abs=1e-6)  # scipy's own rounding


@pytest.mark.parametrize("schedule", ["vp-cosine-zero-snr", "vp-linear", "ve"])
def test_exact_paths_have_the_mean_and_covariance_of_the_dense_joint_gaussian(schedule, generator):
    problem = _problem(schedule)
    dense, count = _dense(problem), 40_000
    flat = problem.exact[0].sample_path(count, generator).flatten(1).numpy()
    deviation = np.sqrt(dense.covariance.diagonal())
    assert ((flat.mean(0) - dense.mean) / deviation).tolist() == pytest.approx([0.0] * 21, abs=4.5 / math.sqrt(count))
    scaled = (flat - dense.mean) / deviation
    correlation = dense.covariance / np.outer(deviation, deviation)
    assert scaled.T @ scaled / count == pytest.approx(correlation, abs=4.5 * math.sqrt(2 / count))


def test_end_points_are_drawn_with_the_posterior_moments(gaussian_problem, generator):
    exact = gaussian_problem.exact[0]
    draws = exact.sample(40_000, generator)
    assert ((draws.mean(0) - exact.mean) / exact.variance.sqrt()).abs().max() < 4.5 / 200
    assert draws.T.cov().numpy() == pytest.approx(exact.covariance.numpy(), abs=0.05)


@pytest.mark.parametrize("origin", ["prior", "inflated", "control", "exact"])
@pytest.mark.parametrize("schedule", ZERO_SNR)
def test_the_residual_is_zero_on_every_path_of_any_origin(schedule, origin, generator):
    problem = _problem(schedule)
    residual = _residual(problem, _paths(problem, origin, generator))
    assert float(residual.abs().max()) < 1e-9


@pytest.mark.parametrize("origin", ["prior", "inflated", "control", "exact"])
@pytest.mark.parametrize("schedule", ZERO_SNR)
def test_in_float32_the_residual_is_zero_to_four_digits(schedule, origin, generator):
    problem = _problem(schedule)
    residual = _residual(problem, _paths(problem, origin, generator).float())
    assert float(residual.abs().max()) < 1e-4


@pytest.mark.parametrize("origin", ["prior", "inflated", "exact"])
def test_the_shipped_problem_has_a_zero_residual_on_every_path(origin, generator):
    problem = make_problem("gaussian-linear")
    states = _paths(problem, origin, generator, count=50)
    assert float(_residual(problem, states).abs().max()) < 1e-9
    assert float(_residual(problem, states.float()).abs().max()) < 1e-4


@pytest.mark.parametrize("origin", ["prior", "exact"])
@pytest.mark.parametrize("schedule", ["vp-linear", "vp-cosine", "ve"])
def test_with_signal_in_the_base_the_residual_is_the_tilt_of_the_base(schedule, origin, generator):
    problem = _problem(schedule)
    states = _paths(problem, origin, generator)
    residual = _residual(problem, states).numpy()
    assert np.abs(residual).max() > 1e-3
    assert residual + _base_tilt(problem.exact[0], problem.prior, states) == pytest.approx(np.zeros(200), abs=1e-9)


@pytest.mark.parametrize("schedule", ZERO_SNR)
def test_pure_noise_leaves_the_base_distribution_alone(schedule):
    exact = _problem(schedule).exact[0]
    assert exact.base_mean.abs().max() < 1e-12
    assert exact.base_covariance.numpy() == pytest.approx(np.eye(DIM), abs=1e-12)


def test_the_evidence_bounds_meet_for_the_exact_posterior(generator):
    problem = _problem("vp-cosine-zero-snr")
    states = problem.exact[0].sample_path(100, generator)
    log_weight = problem.exact[0].log_partition - _residual(problem, states)  # log p(tau) p(y | x) / q(tau)
    assert float(log_weight.std()) < 1e-9


def test_many_steps_approach_the_posterior_of_the_data_distribution():
    innovation = MATRIX @ COVARIANCE @ MATRIX.T + NOISE**2 * torch.eye(2, dtype=torch.float64)
    expected = stats.multivariate_normal((MATRIX @ MEAN).numpy(), innovation.numpy()).logpdf(MEASUREMENT.numpy())
    errors = []
    for steps in (10, 40, 160):
        denoiser = GaussianDenoiser(MEAN, COVARIANCE)
        schedule = make_schedule("vp-cosine-zero-snr", steps)
        prior = Prior(denoiser, schedule, (DIM,), denoiser.denoising_variance)
        errors.append(abs(ChainPosterior(prior, MATRIX, NOISE, MEASUREMENT).log_partition - expected))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02
