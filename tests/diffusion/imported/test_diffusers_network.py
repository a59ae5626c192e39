"""The chain of an imported network against diffusers' own schedulers, for the same noise.

The schedulers compute 1 - alphas_cumprod[t] / alphas_cumprod[t - 1] in float32, of which little is left where a step
is small. They are given the same numbers in float64 here, so that what is compared is the formula.
"""

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diffusion.imported.base import PURE_NOISE
from diffusion.imported.diffusers_network import DiscreteDenoiser, discrete_denoiser, training_levels
from diffusion.imported.diffusers_unet import DiffusersUNet
from diffusion.imported.variance import large_variance, small_variance
from diffusion.posterior import PosteriorConfig, make_posterior
from diffusion.prior import Prior

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
BETAS = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.0001 + 0.00003 * index for index in range(1000)]},
}
CASES = [(betas, prediction, False) for betas in BETAS for prediction in ("epsilon", "v_prediction", "sample")]
CASES += [("linear", prediction, True) for prediction in ("v_prediction", "sample")]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(3)
    return UNet2DModel(**UNET).double().requires_grad_(False)


def _prior(unet, scheduler, steps, variance):
    levels = training_levels(scheduler.alphas_cumprod)
    config = scheduler.config
    clip = config.clip_sample_range if config.clip_sample else None
    denoiser = DiscreteDenoiser(DiffusersUNet.of(unet), levels, config.prediction_type, clip)
    return Prior(denoiser, denoiser.schedule(torch.as_tensor(steps)), (1, 8, 8), variance)


def _in_double(scheduler):
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def _largest_difference(prior, scheduler, unet, step):
    """The largest one between the states of two chains that are given the same noise; of the last, between means."""
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    ours = theirs = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    largest = 0.0
    for index, time in enumerate(scheduler.timesteps.tolist()):
        theirs = step(unet(theirs, time).sample, time, theirs, generators[0])
        now = torch.full((2,), index)
        if index + 1 < len(scheduler.timesteps):
            ours = prior.sample_transition(ours, now, generators[1])
        else:
            ours = prior.mean(ours, now, prior.denoised(ours, now))
        largest = max(largest, float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max())))
    return largest


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("betas", "prediction", "zero_snr"), CASES)
def test_the_chain_makes_the_steps_of_ddpm(unet, betas, prediction, zero_snr, variance):
    scheduler = _in_double(
        DDPMScheduler(
            prediction_type=prediction, variance_type=variance, rescale_betas_zero_snr=zero_snr, **BETAS[betas]
        )
    )
    scheduler.set_timesteps(timesteps=[999, 998, 700, 333, 332, 51, 7, 1, 0])
    chosen = small_variance if variance == "fixed_small" else large_variance
    prior = _prior(unet, scheduler, scheduler.timesteps, chosen)
    assert prior.schedule.has_zero_terminal_snr == zero_snr
    found = _largest_difference(prior, scheduler, unet, lambda *given: scheduler.step(*given).prev_sample)
    assert found < 1e-9


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("count", [3, 10, 100])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_chain_makes_the_steps_of_ddim_with_all_its_noise(unet, prediction, count, clip):
    scheduler = DDIMScheduler(prediction_type=prediction, num_train_timesteps=100, clip_sample=clip)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    _in_double(scheduler).set_timesteps(count)

    def step(output, time, state, generator):
        options = {"use_clipped_model_output": True, "generator": generator}
        return scheduler.step(output, time, state, eta=1.0, **options).prev_sample

    prior = _prior(unet, scheduler, scheduler.timesteps, small_variance)
    assert _largest_difference(prior, scheduler, unet, step) < 1e-9


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_in_float32_the_chain_makes_the_steps_of_ddpm_in_float64_to_rounding(variance):
    torch.manual_seed(3)
    unet = UNet2DModel(**UNET).requires_grad_(False)
    scheduler = _in_double(DDPMScheduler(variance_type=variance))
    chosen = small_variance if variance == "fixed_small" else large_variance
    prior = _prior(unet, scheduler, scheduler.timesteps, chosen)
    state = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    for index in (0, 200, 500, 800, 990, 998):
        step, generator = torch.full((2,), index), torch.Generator().manual_seed(index)
        output = unet(state, 999 - index).sample.double()
        theirs = scheduler.step(output, 999 - index, state.double(), generator=generator).prev_sample
        noise = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
        ours = prior.mean(state, step, prior.denoised(state, step)) + prior.std[index] * noise
        assert float((ours - theirs).abs().max()) < 1e-5


def test_the_last_transition_keeps_the_noise_of_the_cleanest_level_which_ddpm_drops(unet):
    scheduler = DDPMScheduler()
    for variance in (small_variance, large_variance):
        std = _prior(unet, scheduler, [999, 500, 0], variance).std
        assert float(std[-1]) == pytest.approx(0.01, rel=1e-3)  # beta_start is 0.0001


def test_time_is_exact_on_the_training_grid_and_linear_in_the_log_snr_between():
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    levels = training_levels(scheduler.alphas_cumprod)
    denoiser = DiscreteDenoiser(torch.nn.Identity(), levels)
    steps = torch.arange(1000, dtype=torch.float64)
    schedule = denoiser.schedule(torch.arange(999, -1, -1))
    given = (schedule.alpha[:-1] / schedule.sigma[:-1]).log().flip(0)
    assert torch.allclose(denoiser.own_level(denoiser.nearest(given)).time, steps, atol=1e-6)
    between = 0.25 * levels[:-1] + 0.75 * levels[1:]
    assert torch.allclose(denoiser.own_level(between).time, steps[:-1] + 0.75, atol=1e-6)


def test_a_grid_that_ends_in_pure_noise_is_a_schedule_without_signal_at_first():
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    levels = training_levels(scheduler.alphas_cumprod)
    assert float(levels[-1]) == PURE_NOISE
    denoiser = DiscreteDenoiser(torch.nn.Identity(), levels, "v_prediction")
    schedule = denoiser.schedule(torch.tensor([999, 0]))
    assert schedule.alpha.tolist()[0] == 0.0
    assert denoiser.own_level(denoiser.nearest(torch.tensor([PURE_NOISE]).double())).time.tolist() == [999.0]


def test_the_denoiser_is_made_again_from_its_arguments_and_weights(unet):
    scheduler = DDPMScheduler(num_train_timesteps=50)
    levels = training_levels(scheduler.alphas_cumprod)
    first = DiscreteDenoiser(DiffusersUNet.of(unet), levels, "v_prediction", 1.0).requires_grad_(False)
    second = (
        discrete_denoiser((1, 8, 8), 1.0, config=UNET, num_train_timesteps=50, prediction="v_prediction", clip=1.0)
        .double()
        .requires_grad_(False)
    )
    second.load_state_dict(first.state_dict())
    state, alpha = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0.1, 0.7, 0.99]).double()
    assert torch.equal(first(state, alpha, (1 - alpha**2).sqrt()), second(state, alpha, (1 - alpha**2).sqrt()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteDenoiser(torch.nn.Identity(), torch.tensor([1.0, 0.0]), "x"), "unknown prediction type 'x'"),
        (lambda: DiscreteDenoiser(torch.nn.Identity(), torch.tensor([1.0, 2.0])), "must fall over its two or more"),
        (lambda: DiscreteDenoiser(torch.nn.Identity(), torch.tensor([1.0])), "must fall over its two or more"),
        (
            lambda: DiscreteDenoiser(torch.nn.Identity(), torch.tensor([1.0, PURE_NOISE])),
            "says nothing of x where there is noise alone",
        ),
        (
            lambda: DiscreteDenoiser(torch.nn.Identity(), torch.tensor([1.0, 0.0]), clip=0.0),
            "clip must be positive, got 0.0",
        ),
    ],
)
def test_a_network_that_cannot_be_a_denoiser_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)], ids=["image", "vector"])
def test_a_copy_that_is_trained_can_be_given_eyes_for_y_and_starts_as_the_prior(unet, shape):
    scheduler = DDPMScheduler(num_train_timesteps=20)
    prior = _prior(unet, scheduler, [19, 10, 0], small_variance)
    posterior = make_posterior(PosteriorConfig(form="finetune"), prior, shape, None).double()
    assert posterior.sees_measurement
    state, step = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.arange(3)
    denoised = prior.denoised(state, step)
    first, second = (torch.full((3, *shape), value) for value in (0.5, -0.5))
    assert float(posterior.control(state, step, denoised, first).abs().max()) < 1e-9
    with torch.no_grad():
        for name, parameter in posterior.named_parameters():
            if "measurement" in name or "class_embedding" in name:
                parameter.fill_(0.1)
    controls = [posterior.control(state, step, denoised, measurement) for measurement in (first, second)]
    assert float((controls[0] - controls[1]).abs().max()) > 1e-3
