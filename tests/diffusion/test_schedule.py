import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from scipy.integrate import quad

from diffusion.kernel import DenoisingCoefficients
from diffusion.schedule import (
    SCHEDULES,
    Schedule,
    edm,
    flow,
    make_schedule,
    ve,
    vp_cosine,
    vp_linear,
    zero_terminal_snr,
)

VP = [name for name in SCHEDULES if name.startswith("vp")]


def _vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [2, 7, 200])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs_from_noise_to_clean_with_rising_signal_to_noise(name, num_steps):
    schedule = make_schedule(name, num_steps)
    assert schedule.num_steps == num_steps
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.float64
    assert (float(schedule.alpha[-1]), float(schedule.sigma[-1])) == (1.0, 0.0)
    assert bool((schedule.alpha.diff() >= 0).all())
    assert bool((schedule.sigma.diff() < 0).all())


@pytest.mark.parametrize("name", VP)
def test_vp_schedules_keep_the_variance_of_data_whose_standard_deviation_is_the_scale(name):
    schedule = make_schedule(name, 40, scale=2.5)
    variance = schedule.alpha.square() * 2.5**2 + schedule.sigma.square()
    assert torch.allclose(variance, torch.full_like(variance, 6.25), rtol=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_scale_multiplies_the_noise_and_leaves_the_signal(name):
    plain, scaled = make_schedule(name, 9), make_schedule(name, 9, scale=3.0)
    assert torch.equal(plain.alpha, scaled.alpha)
    assert torch.allclose(3 * plain.sigma, scaled.sigma, rtol=1e-14)


def test_vp_linear_is_the_exponential_of_the_integrated_rate():
    schedule = vp_linear(8, beta_min=0.2, beta_max=11.0)
    for index in range(9):
        time = 1 - index / 8
        integral, _ = quad(lambda t: 0.2 + t * (11.0 - 0.2), 0, time)
        assert float(schedule.alpha[index]) == pytest.approx(math.exp(-0.5 * integral), rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, 10, 1000])
def test_vp_cosine_has_the_levels_of_the_published_code(num_steps):
    published = DDPMScheduler(num_train_timesteps=num_steps, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    ours = vp_cosine(num_steps).alpha.square().flip(0)[1:]  # noise last, without the clean end
    assert ours.numpy() == pytest.approx(published.double().numpy(), rel=2e-4, abs=1e-9)  # theirs is float32


def test_vp_cosine_keeps_at_least_a_thousandth_of_the_variance_in_every_step():
    alpha = vp_cosine(100).alpha
    kept = (alpha[:-1] / alpha[1:]).square()
    assert float(kept.min()) == pytest.approx(1 - 0.999, rel=1e-12)
    assert float(alpha[0]) > 0


def test_ve_noise_levels_are_geometric_between_the_bounds():
    schedule = ve(11, sigma_min=0.02, sigma_max=20.0)
    assert schedule.sigma[:-1].numpy() == pytest.approx(np.geomspace(20.0, 0.02, 11), rel=1e-12)
    assert bool((schedule.alpha == 1).all())


@pytest.mark.parametrize("num_steps", [2, 18])
def test_edm_noise_levels_are_those_of_the_published_code(num_steps):
    published = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    published.set_timesteps(num_steps)
    schedule = edm(num_steps, sigma_min=0.01, sigma_max=50.0, rho=5.0)
    assert schedule.sigma.numpy() == pytest.approx(published.sigmas.double().numpy(), rel=1e-6)  # theirs is float32
    assert bool((schedule.alpha == 1).all())


def test_flow_goes_from_pure_noise_to_clean_in_a_straight_line():
    schedule = flow(4, scale=3.0)
    assert schedule.alpha.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert schedule.sigma.tolist() == [3.0, 2.25, 1.5, 0.75, 0.0]
    assert schedule.has_zero_terminal_snr


def test_a_chain_on_the_flow_schedule_tends_to_the_memoryless_sde():
    # Its diffusion is 2 sigma (sigma alpha' / alpha - sigma') = 2 (1 - t) / t, Domingo-Enrich et al. 2024.
    errors = []
    for steps in (1_000, 10_000):
        variance = DenoisingCoefficients(flow(steps), torch.full((steps,), 1e-12)).std.square()
        time = torch.arange(steps, dtype=torch.float64) / steps
        inner = slice(steps // 10, 9 * steps // 10)
        errors.append(float((steps * variance / (2 * (1 - time) / time) - 1)[inner].abs().max()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # it goes to zero, by first order


@pytest.mark.parametrize("make", [vp_linear, vp_cosine])
def test_zero_terminal_snr_stretches_alpha_affinely_from_zero_to_one(make):
    plain, schedule = make(12, scale=1.7), zero_terminal_snr(make(12, scale=1.7))
    slope = schedule.alpha.diff() / plain.alpha.diff()
    assert slope.numpy() == pytest.approx(1 / (1 - float(plain.alpha[0])), rel=1e-10)
    assert float(schedule.alpha[0]) == 0.0
    assert float(schedule.sigma[0]) == pytest.approx(1.7, rel=1e-12)
    assert schedule.has_zero_terminal_snr and not plain.has_zero_terminal_snr


def test_zero_terminal_snr_of_a_schedule_that_has_it_changes_nothing():
    schedule = make_schedule("vp-linear-zero-snr", 9, scale=2.0)
    again = zero_terminal_snr(schedule)
    assert torch.allclose(again.alpha, schedule.alpha, rtol=1e-14)
    assert torch.allclose(again.sigma, schedule.sigma, rtol=1e-14)


def test_one_step_from_pure_noise_to_clean_is_a_schedule():
    schedule = make_schedule("vp-cosine-zero-snr", 1)
    assert schedule.alpha.tolist() == [0.0, 1.0]
    assert schedule.sigma.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (_vector(0.5, 1), _vector(1, 0.5, 0), r"equal length >= 2, got shapes \(2,\) and \(3,\)"),
        (_vector(1), _vector(0), r"equal length >= 2, got shapes \(1,\) and \(1,\)"),
        (_vector(0.5, 1).float(), _vector(1, 0), r"must be float64, got torch.float32 and torch.float64"),
        (_vector(0.5, 0.5, 1), _vector(1, 1, 0), "must rise strictly"),
        (_vector(-0.5, 0.5, 1), _vector(1, 1, 0), "must rise strictly"),
        (_vector(0.5, 0.6, 1), _vector(1, 0, 0), "must rise strictly"),
        (_vector(float("nan"), 0.6, 1), _vector(1, 0.5, 0), "must rise strictly"),
        (_vector(0.5, 0.9), _vector(1, 0), r"must end clean \(alpha 1, sigma 0\), got 0.9, 0.0"),
        (_vector(0.5, 1), _vector(1, 0.1), r"must end clean \(alpha 1, sigma 0\), got 1.0, 0.1"),
    ],
)
def test_a_schedule_refuses_levels_that_are_no_chain(alpha, sigma, message):
    with pytest.raises(ValueError, match=message):
        Schedule(alpha, sigma)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vp_linear(0), "num_steps must be at least 1, got 0"),
        (lambda: vp_cosine(5, scale=-1.0), "scale must be a positive standard deviation, got -1.0"),
        (lambda: ve(5, sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max, got 2.0 and 1.0"),
        (lambda: ve(5, scale=0.0), "scale must be a positive standard deviation, got 0.0"),
        (lambda: ve(1), "num_steps >= 2 .* got 1"),
        (lambda: edm(1), "EDM needs num_steps >= 2 .* got 1"),
        (lambda: edm(5, sigma_max=0.001), "EDM needs 0 < sigma_min < sigma_max, got 0.002 and 0.001"),
        (lambda: edm(5, rho=0.0), "EDM needs a positive rho, got 0.0"),
        (lambda: flow(0), "num_steps must be at least 1, got 0"),
        (lambda: flow(3, scale=0.0), "scale must be a positive standard deviation, got 0.0"),
        (lambda: make_schedule("cosine", 5), "unknown schedule 'cosine'; expected one of vp-linear, vp-cosine"),
        (lambda: zero_terminal_snr(ve(5)), "zero_terminal_snr needs a variance-preserving schedule"),
    ],
)
def test_schedule_functions_say_what_they_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
