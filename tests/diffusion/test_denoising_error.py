"""A table of a denoiser's mean squared errors, against denoisers that know theirs."""

import math

import pytest
import torch

from diffusion.denoiser import GaussianDenoiser
from diffusion.denoising_error import LOG_SNR, DenoisingError, levels_at, measure_denoising_error
from diffusion.schedule import SCHEDULES, make_schedule

VARIANCES = torch.tensor([0.01, 0.5, 2.0], dtype=torch.float64)
DATA_STD = math.sqrt(float(VARIANCES.mean()))


@pytest.fixture
def denoiser():
    return GaussianDenoiser(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), torch.diag(VARIANCES))


@pytest.fixture
def exact_table(denoiser):
    errors = denoiser.denoising_variance(*levels_at(LOG_SNR, DATA_STD))
    return DenoisingError(data_std=DATA_STD, log_snr=LOG_SNR, mean_squared=tuple(errors.tolist()))


def test_levels_preserve_variance_and_have_the_signal_to_noise_ratio_asked_for():
    alpha, sigma = levels_at((-3.0, 0.0, 2.0), 0.7)
    assert (alpha**2 + (sigma / 0.7) ** 2).tolist() == pytest.approx([1.0] * 3, abs=1e-14)
    assert (alpha * 0.7 / sigma).log().tolist() == pytest.approx([-3.0, 0.0, 2.0], abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_table_serves_every_schedule_to_a_thousandth(denoiser, exact_table, name):
    schedule = make_schedule(name, 37, scale=DATA_STD)
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    exact = denoiser.denoising_variance(alpha, sigma)
    assert float((exact_table(alpha, sigma) / exact - 1).abs().max()) < 1e-3


def test_beyond_the_table_the_error_has_its_limits(denoiser, exact_table):
    """Pure noise leaves the variance of x, and no noise sigma^2 / alpha^2, whatever alpha."""
    alpha, sigma = torch.tensor([0.0, 1e-9, 3.0], dtype=torch.float64), torch.tensor([2.0, 5.0, 1e-6])
    found = exact_table(alpha, sigma)
    assert found.tolist() == pytest.approx([DATA_STD**2, DATA_STD**2, 1e-12 / 9], rel=1e-3)


def test_a_measured_table_is_the_exact_one_to_its_statistical_error(denoiser, generator):
    clean = denoiser.sample(20_000, generator)
    table = measure_denoising_error(denoiser, clean, DATA_STD, (-4.0, 0.0, 5.0), seed=1)
    exact = denoiser.denoising_variance(*levels_at((-4.0, 0.0, 5.0), DATA_STD))
    # The squared error of 60,000 numbers; the widest direction has most of it, so sqrt(2 / 20,000) = 1 % at worst.
    assert table.mean_squared == pytest.approx(exact.tolist(), rel=0.03)


@pytest.mark.parametrize(
    ("levels", "errors", "message"),
    [
        ((0.0, 0.0), (1.0, 1.0), "increasing"),
        ((0.0, 1.0), (1.0,), "got 2 and 1"),
        ((0.0, 1.0), (1.0, 0.0), "positive and finite"),
        ((), (), "got 0 and 0"),
    ],
)
def test_a_table_that_is_none_is_refused(levels, errors, message):
    with pytest.raises(ValueError, match=message):
        DenoisingError(data_std=1.0, log_snr=levels, mean_squared=errors)
