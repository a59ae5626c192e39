import pytest
import torch

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser, NetworkDenoiser
from diffusion.kernel import normal_log_prob
from diffusion.network import MLP, UNet
from diffusion.path import denoise_path, path_log_ratio
from diffusion.posterior import ControlPosterior, FinetunePosterior, PosteriorConfig, log_ratio, make_posterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix

OF_PRIORS = ["finetune", "lora", "finetune unet", "lora unet", "finetune unet y-image", "lora unet y-image"]
FORMS = ["mlp with gradient", "mlp without gradient", "unet with gradient", "unet without gradient", *OF_PRIORS]


def _gradient(value, measurement):
    """Of log N(y; first element of x, 0.25)."""
    gradient = torch.zeros_like(value)
    gradient.flatten(1)[:, 0] = 4 * (measurement[:, 0].to(value) - value.flatten(1)[:, 0])
    return gradient


@pytest.fixture
def image_prior():
    denoiser = MixtureDenoiser(torch.linspace(-1, 1, 48).reshape(3, 16), 0.2, event_shape=(1, 4, 4))
    return Prior(denoiser, make_schedule("vp-linear", 5), (1, 4, 4), 0.2)


@pytest.fixture
def unet_prior():
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(UNet(1, 1, channels=(8, 8))).requires_grad_(False)
    return Prior(denoiser, make_schedule("vp-linear", 5), (1, 4, 4), 0.2)


@pytest.fixture
def make_form(network_prior, image_prior, unet_prior):
    def make(name):
        torch.manual_seed(1)
        gradient = None if "without" in name else _gradient
        if name in OF_PRIORS:
            prior = unet_prior if "unet" in name else network_prior
            shape = (1, 4, 4) if "y-image" in name else (1,)
            posterior = make_posterior(PosteriorConfig(form=name.split()[0], rank=3), prior, shape, None)
            posterior.y_image = "y-image" in name
            return posterior
        if name.startswith("unet"):
            config = PosteriorConfig(network="unet", hidden=8)
            return make_posterior(config, image_prior, (1,), gradient)
        return make_posterior(PosteriorConfig(hidden=16, depth=2), network_prior, (1,), gradient)

    return make


def _transitions(posterior, generator, count=12, dtype=torch.float32):
    """(next state, state, step, denoised, measurement), every step among them."""
    prior = posterior.prior
    step = torch.arange(count) % prior.num_steps
    state, noise = torch.randn(2, count, *prior.event_shape, generator=generator).to(dtype)
    next_state = state + noise
    shape = (1, 4, 4) if getattr(posterior, "y_image", False) else (1,)
    return next_state, state, step, prior.denoised(state, step), torch.randn(count, *shape, generator=generator)


def _perturb(posterior):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return posterior


@pytest.mark.parametrize("form", FORMS)
def test_every_form_starts_as_the_prior(make_form, form, generator):
    posterior = make_form(form)
    next_state, state, step, denoised, measurement = _transitions(posterior, generator)
    # Convolutions add in another order with and without a graph: rounding of the estimate, in units of std.
    limit = 1e-5 if form in OF_PRIORS and "unet" in form else 0.0
    assert float(posterior.control(state, step, denoised, measurement).detach().abs().max()) <= limit
    ratio = posterior.log_ratio(next_state, state, step, denoised, measurement)
    assert float(ratio.detach().abs().max()) <= 10 * limit


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_says_it_sees_the_measurement_moves_with_it_and_no_other_does(make_form, form, generator):
    posterior = _perturb(make_form(form))
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    one, other = (posterior.control(state, step, denoised, value) for value in (measurement, measurement + 1))
    assert posterior.sees_measurement == (form != "unet without gradient")
    assert torch.equal(one, other) != posterior.sees_measurement


@pytest.mark.parametrize("form", FORMS)
def test_over_whole_paths_every_form_starts_with_a_log_ratio_of_nothing(make_form, form, generator):
    posterior = make_form(form)
    states = torch.randn(3, posterior.prior.num_steps + 1, *posterior.prior.event_shape, generator=generator)
    measurement = torch.zeros(3, *((1, 4, 4) if "y-image" in form else (1,)))
    ratio = path_log_ratio(posterior, states, denoise_path(posterior.prior, states), measurement)
    assert ratio.shape == (3, posterior.prior.num_steps)
    assert float(ratio.abs().max()) <= (1e-4 if form in OF_PRIORS and "unet" in form else 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_the_log_ratio_is_the_difference_of_two_normal_log_densities(make_form, form, generator):
    posterior = _perturb(make_form(form))
    next_state, state, step, denoised, measurement = _transitions(posterior, generator)
    control = posterior.control(state, step, denoised, measurement).detach().double()
    prior = posterior.prior
    std, mean = prior.std[step], prior.mean(state.double(), step, denoised.double())
    shift = control * std.reshape(-1, *[1] * (state.ndim - 1))
    expected = normal_log_prob(next_state.double(), mean + shift, std) - normal_log_prob(next_state.double(), mean, std)
    got = posterior.log_ratio(next_state, state, step, denoised, measurement)
    assert float(control.abs().max()) > 0.01
    assert got.shape == (12,)
    assert got.double().detach().numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-3)


def test_the_log_ratio_integrates_to_a_normalised_posterior_transition():
    noise = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    for u in (-2.0, 0.0, 0.3, 1.5):
        density = (-0.5 * noise[:, 0] ** 2 + log_ratio(noise, torch.full_like(noise, u))).exp() / (2 * torch.pi) ** 0.5
        assert float(torch.trapezoid(density, noise[:, 0])) == pytest.approx(1.0, abs=1e-9)
        assert float(torch.trapezoid(density * noise[:, 0], noise[:, 0])) == pytest.approx(u, abs=1e-9)


def test_small_controls_keep_their_digits_in_float32(generator):
    noise, control = 3 * torch.randn(64, 32, generator=generator), 1e-5 * torch.randn(64, 32, generator=generator)
    exact = log_ratio(noise.double(), control.double())
    error = (log_ratio(noise, control).double() - exact).abs().max()
    assert float(error) < 1e-9  # two log densities of order 300 subtracted in float32 would be off by 1e-5
    assert float(exact.abs().max()) > 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_the_prior_is_neither_trained_nor_saved_with_the_posterior(make_form, form, generator):
    posterior = _perturb(make_form(form))
    mine = {id(parameter) for parameter in posterior.parameters()}
    assert mine and not mine & {id(parameter) for parameter in posterior.prior.parameters()}
    assert posterior.prior not in list(posterior.modules())
    assert not any("prior" in name for name in posterior.state_dict())
    next_state, state, step, denoised, measurement = _transitions(posterior, generator)
    posterior.log_ratio(next_state, state, step, denoised, measurement).sum().backward()
    assert all(parameter.grad is None for parameter in posterior.prior.parameters())
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in posterior.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_at_the_start_some_parameter_already_receives_a_gradient(make_form, form, generator):
    posterior = make_form(form)
    next_state, state, step, denoised, measurement = _transitions(posterior, generator)
    posterior.log_ratio(next_state, state, step, denoised, measurement).sum().backward()
    assert max(float(p.grad.abs().max()) for p in posterior.parameters() if p.grad is not None) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_checkpoint_holds_every_parameter_once_and_restores_the_control(make_form, form, generator):
    posterior, fresh = _perturb(make_form(form)), make_form(form)
    state_dict = posterior.state_dict()
    assert len({tensor.data_ptr() for tensor in state_dict.values()}) == len(state_dict)
    fresh.load_state_dict(state_dict)
    _, *inputs = _transitions(posterior, generator)
    assert torch.equal(fresh.control(*inputs), posterior.control(*inputs))


@pytest.mark.parametrize("form", ["mlp with gradient", "mlp without gradient", "unet with gradient"])
def test_the_control_changes_with_the_measurement_once_weights_have_moved(make_form, form, generator):
    posterior = _perturb(make_form(form))
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    change = posterior.control(state, step, denoised, measurement + 1) - posterior.control(
        state, step, denoised, measurement
    )
    assert bool((change.flatten(1).abs().amax(1) > 1e-3).all())


def _bounded(value, limit):
    rms = value.flatten(1).square().mean(1, keepdim=True).sqrt()
    return value / (1 + (rms / limit) ** 2).sqrt()


def test_the_first_gain_multiplies_the_gradient_at_the_denoised_estimate(make_form, generator):
    posterior, gains = make_form("mlp with gradient"), torch.linspace(0.1, 0.6, 6)
    posterior.gain.data[0] = gains
    prior = posterior.prior
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    error = prior.uncertainty[step, None].float()
    scale = (prior.denoised_coefficient * prior.uncertainty / prior.std)[step, None].float()
    expected = _bounded(scale * gains[step, None] * _bounded(error * _gradient(denoised, measurement), 5.0), 3.0)
    assert posterior.control(state, step, denoised, measurement).detach().numpy() == pytest.approx(
        expected.numpy(), rel=1e-5, abs=1e-7
    )


def test_the_second_gain_multiplies_the_gradient_with_respect_to_the_state(make_form, generator):
    posterior, gains = make_form("mlp with gradient"), torch.linspace(0.1, 0.6, 6)
    posterior.gain.data[1] = gains
    prior = posterior.prior
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    leaf = state.clone().requires_grad_(True)
    estimate = prior.denoiser(leaf, prior.alpha[step], prior.sigma[step])
    log_likelihood = -2 * (measurement[:, 0] - estimate[:, 0]).square()
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), leaf)
    expected = _bounded(gains[step, None] * _bounded(prior.std[step, None].float() * gradient, 5.0), 3.0)
    assert float(expected.abs().max()) > 0.1
    for guidance in (None, gradient):  # computed when it is not given
        control = posterior.control(state, step, denoised, measurement, guidance).detach()
        assert control.numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("kind", "rows"), [(MixtureDenoiser, slice(None)), (GaussianDenoiser, 0)])
def test_exact_denoisers_pull_back_as_autograd_does(generator, kind, rows):
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    means = torch.randn(5, 3, generator=generator, dtype=torch.float64)[rows]
    for covariance in (0.3, root @ root.T + 0.1 * torch.eye(3)):
        denoiser = kind(means, covariance)
        prior = Prior(denoiser, make_schedule("vp-cosine-zero-snr", 6), (3,), denoiser.denoising_variance)
        step = torch.arange(6)
        state, direction = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
        denoised, pulled = prior.pull_back(state, step, lambda value, v=direction: v * value)
        leaf = state.clone().requires_grad_(True)
        estimate = denoiser(leaf, prior.alpha[step], prior.sigma[step])
        (expected,) = torch.autograd.grad(estimate, leaf, (direction * estimate).detach())
        assert denoised.numpy() == pytest.approx(estimate.detach().numpy(), abs=1e-12)
        assert pulled.numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-12)
        assert float(pulled[0].abs().max()) == 0.0  # pure noise says nothing of x
        same, product = prior.covariance_given(state, step)  # J = (alpha / sigma^2) Cov(x | s)
        ratio = (prior.alpha / prior.sigma.square())[:, None]
        assert same.numpy() == pytest.approx(denoised.numpy(), abs=1e-12)
        assert (ratio * product(direction * estimate.detach())).numpy() == pytest.approx(pulled.numpy(), abs=1e-12)
        centred = means - means.mean(0) if rows == slice(None) else torch.zeros(1, 3)
        within = covariance if isinstance(covariance, torch.Tensor) else covariance * torch.eye(3, dtype=torch.float64)
        expected = (within + centred.T @ centred / len(centred)).double() @ direction[0].double()
        assert product(direction)[0].numpy() == pytest.approx(expected.numpy(), rel=1e-9)  # of pure noise that of x


def test_a_denoiser_that_does_not_know_its_covariance_is_asked_for_its_derivative(network_prior, generator):
    step, (state, vector) = torch.arange(6), torch.randn(2, 6, 3, generator=generator)
    denoised, product = network_prior.covariance_given(state, step)
    pulled = network_prior.pull_back(state, step, lambda _: vector)[1]
    scale = (network_prior.sigma.square() / network_prior.alpha)[:, None].float()
    assert torch.allclose(denoised, network_prior.denoised(state, step))
    assert torch.allclose(product(vector)[1:], (scale * pulled)[1:], rtol=1e-5)
    assert not product(vector)[0].any()  # alpha is zero, and what a network says there is no covariance


def test_an_endless_likelihood_gradient_is_bounded_and_keeps_its_direction(network_prior):
    gradient = lambda value, measurement: torch.full_like(value, -1e25)  # noqa: E731
    posterior = ControlPosterior(network_prior, (1,), gradient, guided=False)
    posterior.gain.data.fill_(1.0)
    state, step = torch.zeros(6, 3), torch.arange(6)
    scale = network_prior.denoised_coefficient * network_prior.uncertainty / network_prior.std
    control = posterior.control(state, step, state, torch.zeros(6, 1)).detach()
    expected = _bounded(-5.0 * scale[:, None] * torch.ones(6, 3), 3.0)
    assert control.numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_no_weights_make_a_control_beyond_three_standard_deviations_a_dimension(make_form, generator):
    posterior = make_form("mlp with gradient")
    for parameter in posterior.parameters():
        parameter.data.mul_(10).add_(10)
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    control = posterior.control(100 * state, step, denoised, measurement).detach()
    rms = control.flatten(1).square().mean(1).sqrt()
    assert 2.9 < float(rms.max()) < 3.0 + 1e-5


def test_a_vanishing_likelihood_gradient_leaves_a_finite_control(network_prior):
    posterior = _perturb(ControlPosterior(network_prior, (1,), lambda value, measurement: torch.zeros_like(value)))
    state, step = torch.zeros(6, 3), torch.arange(6)
    assert bool(posterior.control(state, step, state, torch.zeros(6, 1)).isfinite().all())


def test_finetune_shifts_the_mean_to_that_of_its_own_estimate(network_prior, generator):
    posterior = _perturb(FinetunePosterior(network_prior))
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    estimate = posterior.denoiser(state, network_prior.alpha[step], network_prior.sigma[step])
    control = posterior.control(state, step, denoised, measurement)
    shifted = network_prior.mean(state, step, denoised) + network_prior.std[step, None].float() * control
    expected = network_prior.mean(state, step, estimate)
    assert shifted.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_dropout_does_not_make_the_ratio_noisy_even_in_training_mode(generator):
    class Dropping(MLP):
        def forward(self, value, level):
            return torch.nn.functional.dropout(super().forward(value, level), 0.5, self.training)

    prior = Prior(NetworkDenoiser(Dropping(3, 3, 16)).requires_grad_(False), make_schedule("vp-linear", 4), (3,))
    posterior = FinetunePosterior(prior).train()
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    assert torch.equal(posterior.control(state, step, denoised, measurement), torch.zeros(12, 3))


def test_a_unet_sees_images_and_an_mlp_any_shape(image_prior, generator):
    for network in ("mlp", "unet"):
        posterior = _perturb(ControlPosterior(image_prior, (2,), None, network, 8, 1))
        state, step = torch.randn(3, 1, 4, 4, generator=generator), torch.arange(3)
        assert posterior.control(state, step, state, torch.zeros(3, 2)).shape == (3, 1, 4, 4)


def test_the_unet_tells_levels_apart():
    torch.manual_seed(0)
    network = UNet(1, 1, channels=(8, 16))
    images = torch.ones(2, 1, 4, 4)
    low, high = network(images, torch.tensor([-10.0, 10.0])).detach()
    assert float((low - high).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PosteriorConfig(form="guess"), "unknown posterior form 'guess'; expected 'control', 'finetune' or 'lora'"),
        (PosteriorConfig(form="lora"), "MixtureDenoiser has no parameters; use the control form"),
        (PosteriorConfig(form="lora", rank=0), "posterior.rank must be at least 1, got 0"),
        (PosteriorConfig(network="cnn"), "unknown network 'cnn'; expected 'mlp' or 'unet'"),
        (PosteriorConfig(network="unet"), r"a U-Net needs x of shape \[C, H, W\], got \(1,\)"),
        (PosteriorConfig(hidden=0), "depth and hidden of at least 1, got 3 and 0"),
        (PosteriorConfig(form="finetune"), "MixtureDenoiser has no parameters; use the control form"),
    ],
)
def test_forms_that_do_not_fit_the_prior_are_refused(line_mixture, config, message):
    prior = Prior(line_mixture, make_schedule("vp-linear", 4), (1,))
    with pytest.raises(ValueError, match=message):
        make_posterior(config, prior, (1,), None)


def test_the_network_shifts_a_transition_by_what_the_state_has_not_settled(make_form, generator):
    """A constant output F = 0.5 moves u by w_k r_k F: least at the last step, where x is all but known."""
    posterior = make_form("mlp without gradient")
    posterior.network.head.bias.data.fill_(0.5)
    prior, (_, state, step, denoised, measurement) = posterior.prior, _transitions(posterior, generator)
    control = posterior.control(state, step, denoised, measurement).detach()
    scale = prior.denoised_coefficient * prior.uncertainty / prior.std
    share = (prior.uncertainty / prior.uncertainty.max())[step, None].float()
    assert float(share.min()) < 0.5 < float(share.max())
    expected = _bounded(0.5 * scale[step, None].float() * share * torch.ones_like(state), 3.0)
    assert control.numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_the_elementwise_part_begins_at_zero_and_treats_all_elements_alike(network_prior, generator):
    """With the rest at zero, permuting the elements of s permutes those of u."""
    gradient = lambda value, measurement: -value.pow(3)  # noqa: E731
    posterior = ControlPosterior(network_prior, (1,), gradient, hidden=8, depth=1, elementwise=8, guided=False)
    state, step = torch.randn(6, 3, generator=generator), torch.arange(6)
    denoised, measurement = torch.randn(6, 3, generator=generator), torch.zeros(6, 1)
    assert not posterior.control(state, step, denoised, measurement).any()
    torch.nn.init.normal_(posterior.elementwise.head.weight)
    control = posterior.control(state, step, denoised, measurement)
    order = [2, 0, 1]
    permuted = posterior.control(state[:, order], step, denoised[:, order], measurement)
    assert float(control[1:].detach().abs().min()) > 0
    torch.testing.assert_close(permuted, control[:, order])
    without = ControlPosterior(network_prior, (1,), gradient, hidden=8, depth=1, guided=False)
    assert without.elementwise is None


@pytest.mark.parametrize("form", ["lora", "lora unet", "lora unet y-image"])
def test_low_rank_additions_are_few_thin_and_beside_weights_that_stay(make_form, form, generator):
    whole, posterior = make_form(form.replace("lora", "finetune")), make_form(form)
    names = [name for name, _ in posterior.named_parameters()]
    assert all("lora_" in name or "measurement" in name or "class_embedding" in name for name in names)
    assert any("lora_" in name for name in names) and not all("lora_" in name for name in names)
    assert all(min(value.shape[:2]) <= 3 for name, value in posterior.named_parameters() if "lora_" in name)
    assert set(posterior.state_dict()) == set(names)
    _, state, step, denoised, measurement = _transitions(posterior, generator)
    before = {name: value.clone() for name, value in posterior.named_buffers()}
    optimizer = torch.optim.SGD(posterior.parameters(), lr=1.0)
    for _ in range(2):  # of B first, which lets A through
        optimizer.zero_grad()
        (posterior.control(state, step, denoised, measurement) - 1).square().mean().backward()
        optimizer.step()
    assert all(bool(value.grad.abs().max() > 0) for value in posterior.parameters())
    assert all(torch.equal(value, before[name]) for name, value in posterior.named_buffers())
    assert sum(value.numel() for value in whole.parameters()) > sum(value.numel() for value in posterior.parameters())


def test_channels_for_an_image_of_y_are_those_of_one_wider_convolution(unet_prior, generator):
    posterior = _perturb(FinetunePosterior(unet_prior, (2, 4, 4)))
    joined = posterior.denoiser.network.network.conv_in
    value = torch.randn(3, 3, 4, 4, generator=generator)
    weight = torch.cat([joined.first.weight, joined.measurement.weight], 1)
    expected = torch.nn.functional.conv2d(value, weight, joined.first.bias, padding=1)
    assert torch.allclose(joined(value), expected, atol=1e-6)


def test_the_pseudoinverse_gradient_with_a_gain_of_one_is_the_shift_of_the_exact_posterior(generator):
    """Of x ~ N(0, h^2 I) seen through a matrix, as its x given s_k is N(x^, v_k I): u = b_k (E[x | s, y] - x^) / std_k.

    The bound of u is out of reach: it is taken off as it was put on.
    """
    variance, noise_std, matrix = 0.5, 0.3, torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.1, 0.05]], dtype=torch.float64)
    prior = Prior(GaussianDenoiser(torch.zeros(3), variance), make_schedule("vp-cosine-zero-snr", 6), (3,), variance)
    likelihood = GaussianLikelihood(Matrix(matrix), noise_std)
    posterior = make_posterior(
        PosteriorConfig(hidden=8, likelihood_gradient="pseudoinverse"),
        prior,
        (2,),
        likelihood.gradient,
        likelihood.marginal_gradient,
    ).double()
    posterior.gain.data[0] = 1.0
    step = torch.arange(6)
    state = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    measurement = 0.1 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    denoised, left = prior.denoised(state, step), prior.uncertainty[step].square()
    control = posterior.control(state, step, denoised, measurement).detach()
    expected = []
    for row in range(6):
        across = left[row] * matrix @ matrix.T + noise_std**2 * torch.eye(2)
        moved = left[row] * matrix.T @ torch.linalg.solve(across, measurement[row] - matrix @ denoised[row])
        scaled = _bounded((moved / left[row].sqrt())[None], 5.0) * prior.uncertainty[row]
        expected.append(prior.denoised_coefficient[row] / prior.std[row] * scaled)
    expected = _bounded(torch.cat(expected), 3.0)
    assert control.numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-9)


def test_the_pseudoinverse_gradient_needs_a_likelihood_that_has_it(line_mixture):
    prior = Prior(line_mixture, make_schedule("vp-linear", 4), (1,))
    config = PosteriorConfig(likelihood_gradient="pseudoinverse")
    with pytest.raises(ValueError, match="pseudoinverse needs a linear operator with Gaussian noise"):
        make_posterior(config, prior, (1,), _gradient)
