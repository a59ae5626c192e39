"""The exact denoiser of a Gaussian, through every kind of network: its output there is known at its own levels."""

import math

import pytest
import torch
from torch import nn

from diffusion.denoiser import GaussianDenoiser
from diffusion.imported.base import PURE_NOISE, log_snr
from diffusion.imported.diffusers_network import DiscreteDenoiser
from diffusion.imported.edm import EDMDenoiser
from diffusion.imported.flow import FlowDenoiser
from diffusion.imported.score_model import ScoreModelDenoiser
from diffusion.network import MLP
from diffusion.posterior import PosteriorConfig, make_posterior
from diffusion.prior import Prior
from diffusion.schedule import SCHEDULES, make_schedule

MEAN = torch.tensor([0.4, -1.2, 0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.3, 0.4, 0.0], [0.4, 0.5, -0.2], [0.0, -0.2, 0.8]], dtype=torch.float64)
LEVELS = torch.linspace(6.0, -7.0, 14, dtype=torch.float64)  # of a training grid of 14 steps


class Exact(nn.Module):
    """The output of an ideal network for Gaussian data, from its definition, in float64."""

    def __init__(self, levels, output):
        super().__init__()
        self.levels, self.output = levels, output
        self.gaussian = GaussianDenoiser(MEAN, COVARIANCE)

    def forward(self, state, time):
        scale, alpha, sigma = self.levels(time)  # the network is given `scale` times alpha x + sigma eps
        own = state / scale[:, None]
        return self.output(own, self.gaussian(own, alpha, sigma), alpha[:, None], sigma[:, None])


def _plain(alpha, sigma):
    return torch.ones_like(alpha), alpha, sigma


def _epsilon(state, denoised, alpha, sigma):
    return (state - alpha * denoised) / sigma


def _vp(level):
    alpha = 1 / (1 + (-2 * level).exp()).sqrt()
    return _plain(alpha, alpha * (-level).exp())


def _discrete(prediction, output):
    return DiscreteDenoiser(Exact(lambda time: _vp(6.0 - time), output), LEVELS, prediction)


def _edm():
    def levels(time):
        sigma = (4 * time).exp()
        return 1 / (sigma**2 + 0.7**2).sqrt(), torch.ones_like(sigma), sigma

    def output(state, denoised, alpha, sigma):
        total = (sigma**2 + 0.7**2).sqrt()
        return (denoised - 0.7**2 / total**2 * state) / (sigma * 0.7 / total)

    return EDMDenoiser(Exact(levels, output), sigma_data=0.7, sigma_min=0.001, sigma_max=2000.0)


def _ve(time):
    sigma = 0.002 * (900 / 0.002) ** (time / 2)
    return _plain(torch.ones_like(sigma), sigma)


def _vp_sde(time):
    alpha = (-0.5 * (0.1 * time + 0.5 * 29.9 * time**2)).exp()
    return _plain(alpha, (1 - alpha**2).sqrt())


KINDS = {
    "epsilon": lambda: _discrete("epsilon", _epsilon),
    "v_prediction": lambda: _discrete("v_prediction", lambda s, x, a, b: a * _epsilon(s, x, a, b) - b * x),
    "sample": lambda: _discrete("sample", lambda s, x, a, b: x),
    "edm": _edm,
    "flow-1": lambda: FlowDenoiser(
        Exact(lambda time: _plain(time, 1 - time), lambda s, x, a, b: x - _epsilon(s, x, a, b)), 1
    ),
    "flow-0": lambda: FlowDenoiser(
        Exact(lambda time: _plain(1 - time / 1000, time / 1000), lambda s, x, a, b: _epsilon(s, x, a, b) - x), 0, 1000.0
    ),
    "score-ve": lambda: ScoreModelDenoiser(
        Exact(_ve, lambda s, x, a, b: -_epsilon(s, x, a, b)), "ve", final_time=2.0, sigma_min=0.002, sigma_max=900.0
    ),
    "score-vp": lambda: ScoreModelDenoiser(
        Exact(_vp_sde, lambda s, x, a, b: -_epsilon(s, x, a, b)), "vp", epsilon=1e-5, beta_min=0.1, beta_max=30.0
    ),
}


def _random(name):
    """The same kind of denoiser with a random network, which is the exact denoiser of nothing."""
    torch.manual_seed(0)
    denoiser = KINDS[name]()
    denoiser.network = MLP(3, 3, hidden=16, depth=2).double()
    return denoiser.requires_grad_(False)


def _draws(alpha, sigma):
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(len(alpha), 3, dtype=torch.float64, generator=generator) * (alpha + sigma)[:, None]


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", KINDS)
def test_an_ideal_network_gives_the_exact_estimate_at_every_level_and_on_every_scale(name, scale):
    level = LEVELS if name in ("epsilon", "v_prediction", "sample") else torch.linspace(6.0, -6.5, 30).double()
    angle = torch.atan(torch.exp(-level))
    for alpha, sigma in ((angle.cos(), angle.sin()), (torch.ones_like(level), (-level).exp())):
        alpha, sigma = scale * alpha, scale * sigma
        state = _draws(alpha, sigma)
        exact = GaussianDenoiser(MEAN, COVARIANCE)(state, alpha, sigma)
        assert torch.allclose(KINDS[name]()(state, alpha, sigma), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_one_network_gives_the_same_estimate_on_preserving_exploding_and_straight_levels(name):
    denoiser, level = _random(name), torch.linspace(5.5, -6.5, 41).double()
    angle = torch.atan(torch.exp(-level))
    alpha, sigma = angle.cos(), angle.sin()
    state = _draws(alpha, sigma)
    expected = denoiser(state, alpha, sigma)
    for factor in (1 / alpha, 1 / (alpha + sigma)):
        found = denoiser(factor[:, None] * state, factor * alpha, factor * sigma)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_pure_noise_and_clean_states_are_asked_at_the_ends_of_what_the_network_knows(name):
    denoiser = _random(name)
    noisiest, cleanest = (torch.tensor([level], dtype=torch.float64) for level in denoiser.log_snr_range)
    noise = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    own = denoiser.own_level(noisiest)
    at_end = denoiser(own.sigma * noise, own.alpha, own.sigma)
    assert torch.allclose(denoiser(5 * noise, torch.zeros(1), torch.tensor([5.0])), at_end, rtol=1e-9)
    own = denoiser.own_level(cleanest)
    at_end = denoiser(own.alpha * noise, own.alpha, own.sigma)
    assert torch.allclose(denoiser(noise, torch.ones(1), torch.zeros(1)), at_end, rtol=1e-9)
    assert bool(torch.isfinite(at_end).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", KINDS)
def test_an_imported_prior_is_a_chain_on_any_schedule_and_a_posterior_starts_as_it(name, schedule):
    denoiser = _random(name).float()
    if isinstance(denoiser, DiscreteDenoiser):
        denoiser.levels = LEVELS
    prior = Prior(denoiser, make_schedule(schedule, 6), (3,))
    state, step = prior.sample_base(6, torch.Generator().manual_seed(0)), torch.arange(6)
    denoised, pulled = prior.pull_back(state, step, torch.ones_like)
    assert bool(torch.isfinite(prior.log_prob(state, state, step)).all())
    assert bool(torch.isfinite(pulled).all())
    posterior = make_posterior(PosteriorConfig(form="finetune"), prior, (2,), None)
    assert posterior.sees_measurement
    assert torch.equal(posterior.control(state, step, denoised, torch.ones(6, 2)), torch.zeros(6, 3))


def test_log_snr_of_pure_noise_is_finite():
    found = log_snr(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, math.exp(3), 1.0]))
    assert found.tolist() == pytest.approx([PURE_NOISE, -3.0, 0.0], abs=1e-6)
