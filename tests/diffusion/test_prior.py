import math

import pytest
import torch
from scipy import stats

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser, NetworkDenoiser
from diffusion.network import MLP
from diffusion.prior import Prior
from diffusion.schedule import SCHEDULES, make_schedule


@pytest.fixture
def line_prior(line_mixture):
    return Prior(line_mixture, make_schedule("vp-linear", 5), (1,), line_mixture.denoising_variance)


def _steps(index, count):
    return torch.full((count,), index)


@pytest.mark.parametrize("num_steps", [1, 3, 20])
def test_the_chain_of_an_isotropic_gaussian_has_the_marginals_of_noising_at_any_number_of_steps(num_steps):
    mean, variance = 0.8, 2.0
    denoiser = GaussianDenoiser(torch.full((1,), mean, dtype=torch.float64), torch.full((1, 1), variance))
    schedule = make_schedule("vp-linear-zero-snr", num_steps)
    prior = Prior(denoiser, schedule, (1,), denoiser.denoising_variance)
    probes = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    first, second = 0.0, float(schedule.sigma[0] ** 2)
    for index in range(num_steps):
        low, high = prior.mean(probes, _steps(index, 2), prior.denoised(probes, _steps(index, 2)))[:, 0].tolist()
        first = low + (high - low) * first
        second = (high - low) ** 2 * second + float(prior.std[index] ** 2)
        alpha, sigma = float(schedule.alpha[index + 1]), float(schedule.sigma[index + 1])
        assert first == pytest.approx(alpha * mean, rel=1e-9)
        assert second == pytest.approx(alpha**2 * variance + sigma**2, rel=1e-9)


@pytest.mark.parametrize("index", [0, 2, 4])
def test_every_transition_density_integrates_to_one_the_last_included(line_prior, index):
    grid = torch.linspace(-15, 15, 2001, dtype=torch.float64)[:, None]
    state = torch.full_like(grid, 0.4)
    density = line_prior.log_prob(grid, state, _steps(index, len(grid))).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1.0, abs=1e-9)


def test_transitions_are_drawn_from_their_density(line_prior, generator):
    state = torch.full((20_000, 1), 0.4, dtype=torch.float64)
    step = _steps(3, 20_000)
    drawn = line_prior.sample_transition(state, step, generator)
    mean = float(line_prior.mean(state[:1], step[:1], line_prior.denoised(state[:1], step[:1])))
    law = stats.norm(mean, float(line_prior.std[3]))
    assert stats.kstest(drawn[:, 0].numpy(), law.cdf).pvalue > 1e-3
    log_prob = line_prior.log_prob(drawn[:50], state[:50], step[:50])
    assert log_prob.numpy() == pytest.approx(law.logpdf(drawn[:50, 0].numpy()), rel=1e-9)


def test_the_mean_uses_the_estimate_it_is_given(line_prior, generator):
    state, other = torch.randn(2, 5, 1, generator=generator, dtype=torch.float64)
    step = torch.arange(5)
    expected = line_prior.state_coefficient[:, None] * state + line_prior.denoised_coefficient[:, None] * other
    assert torch.equal(line_prior.mean(state, step, other), expected)
    given = line_prior.log_prob(state, state, step, line_prior.denoised(state, step))
    assert torch.equal(given, line_prior.log_prob(state, state, step))
    assert not torch.allclose(given, line_prior.log_prob(state, state, step, other))


def test_the_base_distribution_has_the_noise_level_of_the_schedule(generator):
    denoiser = MixtureDenoiser(torch.zeros(1, 2), 1.0, event_shape=(1, 2))
    prior = Prior(denoiser, make_schedule("ve", 5, sigma_max=7.0), (1, 2))
    draws = prior.sample_base(20_000, generator)
    assert draws.shape == (20_000, 1, 2)
    assert draws.dtype == torch.float32
    assert stats.kstest(draws.flatten().numpy(), stats.norm(0, 7).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_number_a_tensor_and_a_function_give_the_same_denoising_variance(name):
    denoiser = GaussianDenoiser(torch.zeros(2), 0.6 * torch.eye(2, dtype=torch.float64))
    schedule = make_schedule(name, 8)
    values = denoiser.denoising_variance(schedule.alpha[:-1], schedule.sigma[:-1])
    stds = [Prior(denoiser, schedule, (2,), given).std for given in (0.6, values, denoiser.denoising_variance)]
    assert stds[0].numpy() == pytest.approx(stds[1].numpy(), rel=1e-12)
    assert torch.equal(stds[1], stds[2])
    assert bool((stds[0] > 0).all())


def test_a_prior_with_a_trainable_parameter_is_refused_by_name():
    denoiser = NetworkDenoiser(MLP(2, 2, hidden=4, depth=1))
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(name == "network.head.bias")
    with pytest.raises(ValueError, match=r"must be frozen, but its parameter 'network.head.bias' requires a gradient"):
        Prior(denoiser, make_schedule("vp-linear", 4), (2,))


def test_a_prior_that_would_be_deterministic_at_the_last_step_is_refused(line_mixture):
    with pytest.raises(ValueError, match="every transition needs a positive standard deviation"):
        Prior(line_mixture, make_schedule("vp-linear", 4), (1,), 0.0)


def test_the_prior_is_evaluated_without_a_graph(network_prior):
    state = torch.randn(4, 3, requires_grad=True)
    denoised = network_prior.denoised(state, _steps(1, 4))
    assert not denoised.requires_grad
    assert denoised.grad_fn is None
    assert not network_prior.log_prob(state.detach(), state.detach(), _steps(1, 4)).requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_dropout_in_the_prior_is_off_whatever_mode_is_asked_for(training):
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    denoiser = torch.nn.Module()
    denoiser.network = network
    denoiser.forward = lambda state, alpha, sigma: network(state)
    prior = Prior(denoiser.requires_grad_(False), make_schedule("vp-linear", 4), (2,)).train(training)
    state = torch.ones(3, 2)
    assert torch.equal(prior.denoised(state, _steps(0, 3)), prior.denoised(state, _steps(0, 3)))


def test_the_checkpoint_of_a_prior_holds_its_denoiser_only(network_prior):
    assert all(name.startswith("denoiser.") for name in network_prior.state_dict())


def test_levels_reach_the_denoiser_in_sampling_order(generator):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, state, alpha, sigma):
            seen.append((alpha, sigma))
            return state

    schedule = make_schedule("vp-cosine", 4)
    Prior(Spy(), schedule, (1,)).denoised(torch.zeros(4, 1), torch.tensor([3, 0, 1, 2]))
    alpha, sigma = seen[0]
    assert alpha.tolist() == schedule.alpha[[3, 0, 1, 2]].tolist()
    assert sigma.tolist() == schedule.sigma[[3, 0, 1, 2]].tolist()
    assert math.hypot(float(alpha[1]), float(sigma[1])) == pytest.approx(1.0)
