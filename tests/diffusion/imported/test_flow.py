import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from diffusion.imported.flow import FlowDenoiser
from diffusion.imported.variance import large_variance, small_variance
from diffusion.network import MLP
from diffusion.prior import Prior
from diffusion.schedule import flow


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MLP(4, 4, hidden=32, depth=2, embedding=16).requires_grad_(False)


def _state():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


def test_the_estimate_and_euler_steps_are_those_of_diffusers_scheduler(network):
    denoiser = FlowDenoiser(network, data_at=0, time_scale=1000.0)
    state = _state()
    for stochastic in (False, True):
        scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
        scheduler.set_timesteps(8)
        for time in scheduler.timesteps:
            sigma = scheduler.sigmas[len(scheduler.timesteps) - int((scheduler.timesteps <= time).sum())].double()
            estimate = denoiser(state, (1 - sigma).expand(6), sigma.expand(6))
            velocity = network(state, time.expand(6))
            after = scheduler.step(velocity, time, state, generator=torch.Generator().manual_seed(7)).prev_sample
            following = scheduler.sigmas[scheduler.step_index].double()
            if stochastic:
                noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(7))
                expected = (1 - following) * estimate + following * noise
            else:
                expected = following / sigma * state + (1 - following / sigma) * estimate
            assert torch.allclose(after, expected.float(), atol=1e-5)


def test_both_directions_of_time_are_one_model(network):
    backwards = FlowDenoiser(network, data_at=0)
    forwards = FlowDenoiser(_reversed(network), data_at=1)
    noise = torch.linspace(1.0, 0.01, 6, dtype=torch.float64)
    state = _state()
    assert torch.allclose(forwards(state, 1 - noise, noise), backwards(state, 1 - noise, noise), atol=1e-6)


def _reversed(network):
    """The same velocity where time runs the other way."""

    class Reversed(torch.nn.Module):
        def forward(self, state, time):
            return -network(state, 1 - time)

    return Reversed()


def test_the_velocity_of_the_straight_path_between_x_and_noise_gives_x():
    clean, noise = _state(), torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    share = torch.linspace(0.99, 0.01, 6, dtype=torch.float64)

    class Velocity(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, state, time):
            return self.value

    state = ((1 - share)[:, None] * clean + share[:, None] * noise).float()
    for data_at, velocity in ((1, clean - noise), (0, noise - clean)):
        found = FlowDenoiser(Velocity(velocity), data_at)(state, 1 - share, share)
        assert torch.allclose(found, clean, atol=1e-5)


def test_a_chain_of_the_memoryless_sde_is_euler_maruyama_of_it_in_the_limit(network):
    # ds = [v + g^2 / 2 score] dt + g dW, g^2 = 2 (1 - t) / t, score = (t x^ - s) / (1 - t)^2 (data at time 1).
    denoiser = FlowDenoiser(network, data_at=1)
    errors = []
    for steps in (200, 2000):
        prior = Prior(denoiser.double(), flow(steps), (4,), small_variance)
        index = torch.arange(steps // 5, 4 * steps // 5, steps // 20)
        state = _state()[:1].double().expand(len(index), 4)
        time, interval = (index / steps).double()[:, None], 1 / steps
        estimate = prior.denoised(state, index)
        drift = (estimate - state) / (1 - time) + (1 - time) / time * (time * estimate - state) / (1 - time) ** 2
        errors.append(float(((prior.mean(state, index, estimate) - state) / interval - drift).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("variance", [small_variance, large_variance])
def test_the_last_transition_keeps_the_noise_of_the_last_level(network, variance):
    prior = Prior(FlowDenoiser(network.float(), data_at=1), flow(50), (4,), variance)
    assert float(prior.std[-1]) == pytest.approx(0.02 / (0.98**2 + 0.02**2) ** 0.5, rel=1e-9)


def test_conventions_that_are_none_are_refused(network):
    with pytest.raises(ValueError, match="data_at must be 0 or 1, the time at which the state is x, got 2"):
        FlowDenoiser(network, data_at=2)
    with pytest.raises(ValueError, match="time_scale must be positive, got 0"):
        FlowDenoiser(network, data_at=1, time_scale=0)
