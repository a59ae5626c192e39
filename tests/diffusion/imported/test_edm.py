import copy

import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

from diffusion.imported.edm import EDMDenoiser
from diffusion.imported.variance import small_variance
from diffusion.network import MLP
from diffusion.prior import Prior
from diffusion.schedule import edm


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    return EDMDenoiser(MLP(4, 4, hidden=32, depth=2).double(), sigma_data=0.7).requires_grad_(False)


def _preconditioned(denoiser, state, sigma):
    """x^ as diffusers' EDM scheduler makes it of the network F, in float64."""
    scheduler = EDMEulerScheduler(sigma_data=0.7)
    sigma = torch.tensor(sigma, dtype=torch.float64)
    output = denoiser.network(scheduler.precondition_inputs(state, sigma), sigma.log().expand(len(state)) / 4)
    return scheduler.precondition_outputs(state, output, sigma)


def test_the_estimate_is_that_of_diffusers_preconditioning(denoiser):
    state = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma in (0.002, 0.05, 0.7, 3.0, 80.0):
        ours = denoiser(sigma * state, torch.ones(5), torch.full((5,), sigma, dtype=torch.float64))
        assert torch.allclose(ours, _preconditioned(denoiser, sigma * state, sigma), rtol=1e-9, atol=1e-9)


def test_the_time_is_a_quarter_of_the_logarithm_of_the_noise(denoiser):
    own = denoiser.own_level(-torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64).log())
    assert own.time.tolist() == pytest.approx([-1.553652, 0.0, 1.095507], abs=1e-6)


def test_the_chain_makes_ancestral_euler_steps_written_out_and_by_diffusers(denoiser):
    schedule = edm(12)
    prior = Prior(denoiser, schedule, (4,), small_variance)
    library = EulerAncestralDiscreteScheduler()
    library.set_timesteps(12)
    library.sigmas = schedule.sigma
    ours = 80 * torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    written = theirs = ours
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    for index, (now, following) in enumerate(
        zip(schedule.sigma[:-1].tolist(), schedule.sigma[1:].tolist(), strict=True)
    ):
        estimate = _preconditioned(denoiser, written, now)
        up = (following**2 * (now**2 - following**2) / now**2) ** 0.5
        down = (following**2 - up**2) ** 0.5
        noise = torch.randn(6, 4, generator=generators[0], dtype=torch.float64)
        written = written + (written - estimate) / now * (down - now) + up * noise
        epsilon = (theirs - _preconditioned(denoiser, theirs, now)) / now
        library.scale_model_input(theirs, library.timesteps[index])
        theirs = library.step(epsilon, library.timesteps[index], theirs, generator=generators[1]).prev_sample
        step = torch.full((6,), index)
        if index < 11:  # the last step of the others has no noise
            ours = prior.sample_transition(ours, step, generators[2])
        else:
            ours = prior.mean(ours, step, prior.denoised(ours, step))
        assert torch.allclose(ours, written, rtol=1e-9, atol=1e-9)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # it computes in float32
    # At the last level v is sigma^2, but for the share (sigma / h)^2 of it.
    assert float(prior.std[-1]) == pytest.approx(0.002, rel=1e-5)


def test_a_float32_network_gives_the_estimate_of_a_float64_one(denoiser):
    single = copy.deepcopy(denoiser).float()
    state = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = torch.logspace(-2.6, 1.9, 8, dtype=torch.float64)
    double = denoiser(sigma[:, None] * state, torch.ones(8), sigma)
    assert torch.allclose(single((sigma[:, None] * state).float(), torch.ones(8), sigma).double(), double, atol=1e-5)


@pytest.mark.parametrize("bad", [{"sigma_data": 0.0}, {"sigma_min": 0.0}, {"sigma_max": 0.001}])
def test_levels_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="EDM needs 0 < sigma_min < sigma_max and sigma_data > 0, got"):
        EDMDenoiser(MLP(2, 2), **bad)
