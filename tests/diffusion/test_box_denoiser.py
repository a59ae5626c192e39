"""The exact denoiser of a uniform x, against quadrature, at all levels of noise and far outside the box."""

import numpy as np
import pytest
import torch

from diffusion.box_denoiser import BoxDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule

LOW, HIGH = -3.0, 5.0


@pytest.fixture
def denoiser():
    return BoxDenoiser(torch.full((2,), LOW), torch.full((2,), HIGH))


def _quadrature(state, alpha, sigma):
    """Mean and variance of x given s, on a grid so fine that the noise is resolved."""
    middle, reach = (state / alpha, 40 * sigma / alpha) if alpha else (0.0, np.inf)
    near = np.clip(middle, LOW, HIGH)
    x = np.linspace(max(LOW, near - reach), min(HIGH, near + reach), 400_001)
    exponent = -0.5 * ((state - alpha * x) / sigma) ** 2
    weight = np.exp(exponent - exponent.max())
    weight[[0, -1]] *= 0.5
    weight /= weight.sum()
    mean = weight @ x
    return mean, weight @ (x - mean) ** 2


@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.0, 1.0), (1e-7, 1.0), (1e-3, 1.0), (0.12, 0.99), (0.13, 0.99), (0.7, 0.7), (0.999, 0.01)]
)
def test_the_estimate_and_its_slope_are_those_of_quadrature(denoiser, alpha, sigma):
    inside = np.linspace(alpha * LOW, alpha * HIGH, 7)
    states = np.concatenate([inside, [alpha * LOW - 6 * sigma, alpha * HIGH + 6 * sigma, alpha * HIGH + 30 * sigma]])
    state = torch.from_numpy(states)[:, None].expand(-1, 2)
    level, spread = (torch.full((len(state),), value, dtype=torch.float64) for value in (alpha, sigma))
    expected = np.array([_quadrature(one, alpha, sigma) for one in states])
    found, slope = denoiser.pull_back(state, level, spread, torch.ones_like)
    assert denoiser(state, level, spread).tolist() == found.tolist()
    assert found[:, 0].numpy() == pytest.approx(expected[:, 0], abs=1e-8)
    assert slope[:, 1].numpy() == pytest.approx(alpha / sigma**2 * expected[:, 1], rel=2e-6, abs=1e-9)
    assert denoiser(state.float(), level, spread).dtype == torch.float32


def test_the_variance_left_is_that_of_simulation(denoiser):
    schedule = make_schedule("vp-cosine-zero-snr", 10, scale=(HIGH - LOW) / 12**0.5)
    generator = torch.Generator().manual_seed(0)
    clean = denoiser.sample(40_000, generator)
    for alpha, sigma in zip(schedule.alpha[:-1], schedule.sigma[:-1], strict=True):
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        error = denoiser(alpha * clean + sigma * noise, alpha.expand(40_000), sigma.expand(40_000)) - clean
        square = error.square().mean(1)
        expected = float(denoiser.denoising_variance(alpha[None], sigma[None]))
        assert float(square.mean()) == pytest.approx(expected, abs=5 * float(square.std()) / 200)


def test_its_chain_ends_uniform_in_the_box(denoiser):
    steps = 50
    schedule = make_schedule("vp-cosine-zero-snr", steps, scale=(HIGH - LOW) / 12**0.5)
    prior = Prior(denoiser, schedule, (2,), denoiser.denoising_variance, (HIGH - LOW) / 12**0.5)
    generator = torch.Generator().manual_seed(1)
    state = prior.sample_base(20_000, generator)
    for index in range(steps):
        state = prior.sample_transition(state, torch.full((len(state),), index), generator)
    inside = ((state >= LOW) & (state <= HIGH)).all(1).float().mean()
    counts = torch.histc(state[:, 0].clamp(LOW, HIGH), 8, LOW, HIGH) / len(state)
    assert float(inside) > 0.98 and counts.tolist() == pytest.approx([0.125] * 8, abs=0.015)
    assert float((denoiser.log_prob(state.double()) > -torch.inf).float().mean()) == pytest.approx(float(inside))
    assert float(denoiser.log_prob(torch.zeros(1, 2))) == pytest.approx(-2 * np.log(8))


def test_a_box_that_is_none_is_refused():
    with pytest.raises(ValueError, match="a box needs low < high"):
        BoxDenoiser(torch.zeros(2), torch.tensor([1.0, 0.0]))


def test_sides_of_very_different_lengths_do_not_disturb_each_other(generator):
    """Each element of a box is as the side alone has it."""
    low, high = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([1e-4, 10.0], dtype=torch.float64)
    both = BoxDenoiser(low, high)
    state = torch.tensor([[0.3, 4.0], [-1.0, 11.0]], dtype=torch.float64)
    level = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    denoised, pulled = both.pull_back(state, *level, torch.ones_like)
    for side in (0, 1):
        alone = BoxDenoiser(low[side : side + 1], high[side : side + 1])
        expected, slope = alone.pull_back(state[:, side : side + 1], *level, torch.ones_like)
        assert denoised[:, side].tolist() == pytest.approx(expected[:, 0].tolist(), rel=1e-12)
        assert pulled[:, side].tolist() == pytest.approx(slope[:, 0].tolist(), rel=1e-12)
