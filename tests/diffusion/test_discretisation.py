"""The cost of finite steps, against chains of which everything is Gaussian and known."""

import math

import numpy as np
import pytest
import torch

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.denoising_error import LOG_SNR, DenoisingError, levels_at
from diffusion.discretisation import discretisation_error, noise_left, smallest_num_steps
from diffusion.imported.variance import SamplerVariance
from diffusion.path import denoise_path, path_log_prior
from diffusion.prior import Prior
from diffusion.schedule import SCHEDULES, make_schedule

VARIANCES = torch.tensor([0.05, 0.6, 2.0], dtype=torch.float64)
MEAN = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
DATA_STD = math.sqrt(float(VARIANCES.mean()))
MEAN_SQUARE = float((VARIANCES + MEAN**2).mean())
GAUSSIAN = GaussianDenoiser(MEAN, torch.diag(VARIANCES))


def _divergence(mean, covariance, other_mean, other_covariance):
    """KL of two Gaussians, nats."""
    precision = np.linalg.inv(other_covariance)
    offset = other_mean - mean
    dets = np.linalg.slogdet(other_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.trace(precision @ covariance) + offset @ precision @ offset - len(mean) + dets)


def _joint(prior, variance, mean, resolution):
    """Moments of s_0 ... s_T-1 and of x with noise of one coordinate, under noised data and under the chain."""
    schedule, steps = prior.schedule, prior.num_steps
    alpha = np.append(schedule.alpha[:-1].numpy(), 1.0)
    sigma = np.append(schedule.sigma[:-1].numpy(), resolution * DATA_STD)
    noised = variance * np.outer(alpha, alpha)
    for i in range(steps + 1):
        for j in range(steps + 1):
            later, earlier = max(i, j), min(i, j)  # the noisier is a noised version of the cleaner
            noised[i, j] += alpha[earlier] / alpha[later] * sigma[later] ** 2 if alpha[later] > 0 else sigma[0] ** 2
    weight = alpha * variance / (alpha**2 * variance + sigma**2)  # x^ = mean + weight (s - alpha mean)
    a, b, std = (value.numpy().copy() for value in (prior.state_coefficient, prior.denoised_coefficient, prior.std))
    ratio = alpha[-2]  # the last transition, then noise given x and s_T-1: the formulas of diffusion.kernel
    added = sigma[-2] ** 2 - ratio**2 * sigma[-1] ** 2
    a[-1], b[-1] = ratio * sigma[-1] ** 2 / sigma[-2] ** 2, added / sigma[-2] ** 2
    std[-1] = (sigma[-1] ** 2 * added / sigma[-2] ** 2 + b[-1] ** 2 * float(prior.std[-1]) ** 2) ** 0.5
    chain, chain_mean = np.zeros((steps + 1, steps + 1)), np.zeros(steps + 1)
    chain[0, 0] = sigma[0] ** 2
    for k in range(steps):
        slope = a[k] + b[k] * weight[k]
        chain_mean[k + 1] = slope * chain_mean[k] + b[k] * mean * (1 - weight[k] * alpha[k])
        chain[k + 1, : k + 1] = chain[: k + 1, k + 1] = slope * chain[k, : k + 1]
        chain[k + 1, k + 1] = slope**2 * chain[k, k] + std[k] ** 2
    return alpha * mean, noised, chain_mean, chain


@pytest.mark.parametrize("presumed", [None, "small", "large"])
@pytest.mark.parametrize("name", [*SCHEDULES])
def test_of_gaussian_data_it_is_the_divergence_of_the_paths_and_bounds_that_of_x(name, presumed):
    """Against the two joint Gaussians of all states, by linear algebra."""
    schedule = make_schedule(name, 12, scale=DATA_STD)
    variance = None if presumed is None else SamplerVariance(name=presumed, data_std=1.1)
    prior = Prior(GAUSSIAN, schedule, (3,), variance or GAUSSIAN.denoising_variance, DATA_STD)
    exact = marginal = 0.0
    for value, mean in zip(VARIANCES.tolist(), MEAN.tolist(), strict=True):
        data_mean, data, chain_mean, chain = _joint(prior, value, mean, resolution=1e-3)
        exact += _divergence(data_mean, data, chain_mean, chain)
        marginal += _divergence(data_mean[-1:], data[-1:, -1:], chain_mean[-1:], chain[-1:, -1:])
    found = discretisation_error(
        schedule,
        GAUSSIAN.denoising_variance,
        DATA_STD,
        presumed=variance,
        mean_square=MEAN_SQUARE,
        resolution=1e-3,
    )
    assert 3 * found == pytest.approx(exact, rel=1e-5, abs=1e-7)
    assert 3 * found >= marginal > 0


def test_a_resolution_that_is_a_level_of_the_chain_leaves_out_what_comes_after():
    schedule = make_schedule("vp-cosine-zero-snr", 12, scale=DATA_STD)
    prior = Prior(GAUSSIAN, schedule, (3,), GAUSSIAN.denoising_variance, DATA_STD)
    resolution = float(schedule.sigma[6] / schedule.alpha[6]) / DATA_STD
    exact = 0.0
    for value, mean in zip(VARIANCES.tolist(), MEAN.tolist(), strict=True):
        data_mean, data, chain_mean, chain = _joint(prior, value, mean, 1e-3)
        exact += _divergence(data_mean[:7], data[:7, :7], chain_mean[:7], chain[:7, :7])
    found = discretisation_error(schedule, GAUSSIAN.denoising_variance, DATA_STD, resolution=resolution)
    assert 3 * found == pytest.approx(exact, rel=1e-6)


def test_of_one_variance_in_every_direction_there_is_none():
    schedule = make_schedule("vp-cosine-zero-snr", 5, scale=0.7)
    assert discretisation_error(schedule, SamplerVariance(name="large", data_std=0.7), 0.7) == pytest.approx(
        0, abs=1e-12
    )


def test_of_a_mixture_it_is_the_mean_log_ratio_of_paths(generator):
    """E_n[log n(tau) - log p(tau)] over the paths of noised data down to the last level, by Monte Carlo."""
    mixture = MixtureDenoiser(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), 0.04)
    data_std, steps = 0.8, 8
    schedule = make_schedule("vp-cosine-zero-snr", steps, scale=data_std)
    errors = mixture.denoising_variance(*levels_at(LOG_SNR, data_std), count=20_000)
    table = DenoisingError(data_std=data_std, log_snr=LOG_SNR, mean_squared=tuple(errors.tolist()))
    prior = Prior(mixture, schedule, (2,), table, data_std)
    states = prior.noising.sample_path(mixture.sample(20_000, generator), generator)
    # Given the last noised state the path is noise alone, and so is the rest of n but its density, a mixture.
    last = MixtureDenoiser(
        schedule.alpha[-2] * mixture.means, float(schedule.alpha[-2] ** 2 * 0.04 + schedule.sigma[-2] ** 2)
    )
    log_data = last.log_prob(states[:, -2]) + prior.noising.path_log_prob(states)[:, :-1].sum(1)
    log_chain = path_log_prior(prior, states, denoise_path(prior, states))[:, :-1].sum(1)
    log_base = -0.5 * (states[:, 0] / schedule.sigma[0]).square().sum(1) - 2 * (
        schedule.sigma[0].log() + 0.5 * math.log(2 * math.pi)
    )
    ratio = log_data - log_chain - log_base
    resolution = float(schedule.sigma[-2] / schedule.alpha[-2]) / data_std
    found = 2 * discretisation_error(schedule, table, data_std, resolution=resolution)
    assert found == pytest.approx(float(ratio.mean()), abs=4 * float(ratio.std()) / 20_000**0.5 + 0.01)
    assert found > 0.2  # so that the check has power


def test_it_falls_with_the_number_of_steps_as_one_over_it_and_the_smallest_is_found():
    def error_of(steps):
        schedule = make_schedule("vp-cosine-zero-snr", steps, scale=DATA_STD)
        return discretisation_error(schedule, GAUSSIAN.denoising_variance, DATA_STD)

    assert error_of(400) == pytest.approx(error_of(200) / 2, rel=0.1)
    steps = smallest_num_steps(error_of, 1e-3, 2, 2_000)
    assert error_of(steps) <= 1e-3 < error_of(steps - 1)
    assert smallest_num_steps(error_of, 1e-9, 2, 100) is None
    assert smallest_num_steps(error_of, 10.0, 2, 100) == 2


def test_the_noise_that_stays_is_that_of_the_last_transition():
    schedule = make_schedule("edm", 9, scale=DATA_STD)
    prior = Prior(GAUSSIAN, schedule, (3,), GAUSSIAN.denoising_variance, DATA_STD)
    assert noise_left(schedule, GAUSSIAN.denoising_variance) == pytest.approx(float(prior.std[-1]))
