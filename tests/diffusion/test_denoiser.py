import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser, NetworkDenoiser, log_snr
from diffusion.network import MLP

LEVELS = [(1.0, 1e-3), (0.99, 0.1), (0.6, 0.8), (0.05, 1.0), (1.0, 20.0)]
COVARIANCE = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.5, -0.2], [0.0, -0.2, 2.0]], dtype=torch.float64)


def _level(value, count):
    return torch.full((count,), value, dtype=torch.float64)


def _mixture(denoiser, alpha=1.0, sigma=0.0):
    """The noised mixture as a torch distribution: an independent implementation."""
    dim = denoiser.means.shape[1]
    covariance = alpha**2 * denoiser.covariance + sigma**2 * torch.eye(dim, dtype=torch.float64)
    components = MultivariateNormal(alpha * denoiser.means, covariance.expand(len(denoiser.means), dim, dim))
    return MixtureSameFamily(Categorical(logits=denoiser.log_weights), components)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_gaussian_denoiser_is_the_conditional_mean_of_the_dense_joint_gaussian(alpha, sigma, generator):
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    state = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    noisy = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
    expected = mean + torch.linalg.solve(noisy, (state - alpha * mean).T).T @ (alpha * COVARIANCE)
    denoised = GaussianDenoiser(mean, COVARIANCE)(state, _level(alpha, 5), _level(sigma, 5))
    assert denoised.numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_mixture_denoiser_is_the_quotient_of_two_integrals_on_the_line(line_mixture, alpha, sigma):
    state = torch.tensor([[-3.0], [-0.4], [0.0], [1.9], [2.0]], dtype=torch.float64)
    denoised = line_mixture(state, _level(alpha, 5), _level(sigma, 5))
    for value, estimate in zip(state[:, 0].tolist(), denoised[:, 0].tolist(), strict=True):
        centre, width = (value / alpha, 8 * sigma / alpha) if sigma < 0.5 else (0.0, 12.0)
        grid = np.linspace(centre - width, centre + width, 20_001)
        prior = stats.norm.pdf(grid[:, None], line_mixture.means[:, 0].numpy(), math.sqrt(0.3)) @ [0.2, 0.5, 0.3]
        joint = prior * np.exp(-0.5 * ((value - alpha * grid) / sigma) ** 2)
        assert estimate == pytest.approx(np.trapezoid(grid * joint) / np.trapezoid(joint), abs=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.9, 0.5), (0.3, 0.95)])
def test_a_mixture_with_full_covariance_agrees_with_quadrature_in_the_plane(plane_mixture, alpha, sigma):
    axis = torch.linspace(-7, 7, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = _mixture(plane_mixture).log_prob(grid).exp()
    state = torch.tensor([[0.3, -0.2], [-1.5, 1.0], [2.0, 2.5]], dtype=torch.float64)
    joint = density * torch.exp(-0.5 * (state[:, None] - alpha * grid).square().sum(2) / sigma**2)
    expected = joint @ grid / joint.sum(1, keepdim=True)
    denoised = plane_mixture(state, _level(alpha, 3), _level(sigma, 3))
    assert denoised.numpy() == pytest.approx(expected.numpy(), abs=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_exact_denoisers_obey_tweedies_formula_with_the_score_from_autograd(plane_mixture, alpha, sigma, generator):
    state = alpha * plane_mixture.sample(6, generator) + sigma * torch.randn(6, 2, generator=generator).double()
    leaf = state.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(_mixture(plane_mixture, alpha, sigma).log_prob(leaf).sum(), leaf)
    expected = (state + sigma**2 * score) / alpha
    denoised = plane_mixture(state, _level(alpha, 6), _level(sigma, 6))
    assert denoised.numpy() == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-8)


def test_a_mixture_of_one_component_is_the_gaussian(generator):
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    state = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    levels = torch.tensor([0.0, 0.2, 0.9, 1.0]).double(), torch.tensor([1.0, 0.97, 0.4, 0.0]).double()
    one = MixtureDenoiser(mean[None], COVARIANCE)(state, *levels)
    assert one.numpy() == pytest.approx(GaussianDenoiser(mean, COVARIANCE)(state, *levels).numpy(), abs=1e-12)


def test_an_isotropic_covariance_may_be_given_as_a_number_or_as_a_matrix(generator):
    means = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    state = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    number, matrix = MixtureDenoiser(means, 0.2), MixtureDenoiser(means, 0.2 * torch.eye(3))
    levels = _level(0.7, 5), _level(0.6, 5)
    assert number(state, *levels).numpy() == pytest.approx(matrix(state, *levels).numpy(), abs=1e-7)  # 0.2 in float32
    assert number.log_prob(state).numpy() == pytest.approx(matrix.log_prob(state).numpy(), abs=1e-6)
    assert torch.allclose(number.covariance, 0.2 * torch.eye(3, dtype=torch.float64))
    assert torch.allclose(matrix.covariance, number.covariance, atol=1e-7)


def test_pure_noise_denoises_to_the_mean_and_clean_data_to_itself(line_mixture, plane_mixture):
    gaussian = GaussianDenoiser(torch.tensor([0.5, -1.0]), torch.eye(2) + 0.3)
    for denoiser, mean in [
        (line_mixture, line_mixture.log_weights.exp() @ line_mixture.means),
        (plane_mixture, plane_mixture.log_weights.exp() @ plane_mixture.means),
        (gaussian, gaussian.mean),
    ]:
        state = torch.tensor([[-40.0, 7.0], [0.3, 0.1]], dtype=torch.float64)[:, : len(mean)]
        noise = denoiser(state, _level(0.0, 2), _level(1.0, 2))
        assert noise.numpy() == pytest.approx(mean.expand(2, -1).numpy(), abs=1e-12)
        clean = denoiser(state, _level(1.0, 2), _level(0.0, 2))
        assert clean.numpy() == pytest.approx(state.numpy(), abs=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 5.0])
def test_three_thousand_components_in_sixty_four_dimensions_are_exact_in_float32(sigma, generator):
    means = torch.rand(3_000, 64, generator=generator, dtype=torch.float64) * 2 - 1
    denoiser = MixtureDenoiser(means, 0.0625, event_shape=(1, 8, 8))
    clean = denoiser.sample(4, generator)
    state = clean + sigma * torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    rows = []
    for flat in state.flatten(1):  # no expansion of the square, one state at a time
        weights = torch.softmax(-0.5 * (flat - means).square().sum(1) / (0.0625 + sigma**2), 0)
        centre = weights @ means
        rows.append(centre + 0.0625 / (0.0625 + sigma**2) * (flat - centre))
    denoised = denoiser(state.float(), _level(1.0, 4), _level(sigma, 4))
    assert denoised.dtype == torch.float32
    assert denoised.shape == (4, 1, 8, 8)
    assert denoised.flatten(1).numpy() == pytest.approx(torch.stack(rows).numpy(), abs=2e-5)


def test_the_mixture_density_is_that_of_torch_distributions(line_mixture, plane_mixture, generator):
    for denoiser in (line_mixture, plane_mixture):
        value = 3 * torch.randn(10, denoiser.means.shape[1], generator=generator, dtype=torch.float64)
        assert denoiser.log_prob(value).numpy() == pytest.approx(_mixture(denoiser).log_prob(value).numpy(), rel=1e-10)


def test_the_mixture_density_integrates_to_one(line_mixture, plane_mixture):
    line = torch.linspace(-8, 9, 2001, dtype=torch.float64)
    assert float(torch.trapezoid(line_mixture.log_prob(line[:, None]).exp(), line)) == pytest.approx(1, abs=1e-9)
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    total = plane_mixture.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * 0.04**2
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_a_mixture_that_loads_other_parameters_forgets_the_old_ones(plane_mixture):
    loaded = MixtureDenoiser(torch.zeros(3, 2), torch.eye(2))
    state = torch.tensor([[0.3, -0.2], [-1.5, 1.0]])
    levels = _level(0.8, 2), _level(0.6, 2)
    loaded(state, *levels)
    loaded.load_state_dict(plane_mixture.state_dict())
    assert torch.equal(loaded(state, *levels), plane_mixture(state, *levels))


def test_responsibilities_are_bayes_rule_over_the_components(plane_mixture, generator):
    state = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    noised = _mixture(plane_mixture, 0.8, 0.6)
    joint = noised.component_distribution.log_prob(state[:, None]) + plane_mixture.log_weights
    expected = joint - joint.logsumexp(1, keepdim=True)
    got = plane_mixture.responsibilities(state, _level(0.8, 6), _level(0.6, 6))
    assert got.log().numpy() == pytest.approx(expected.numpy(), abs=1e-9)


def test_no_responsibility_is_a_denormal_number_on_which_matrix_products_are_slow(line_mixture):
    state = torch.linspace(-30, 30, 601)[:, None]
    weights = line_mixture.responsibilities(state, _level(1.0, 601), _level(0.3, 601))
    assert weights.dtype == torch.float32
    assert float(weights.min()) > torch.finfo(torch.float32).tiny
    exact = line_mixture.responsibilities(state.double(), _level(1.0, 601), _level(0.3, 601))
    assert float(exact.min()) < 1e-25  # so that there was something to clamp


def test_samples_have_the_moments_of_the_distribution(plane_mixture, generator):
    draws = plane_mixture.sample(40_000, generator)
    weights, means = plane_mixture.log_weights.exp(), plane_mixture.means
    mean = weights @ means
    covariance = plane_mixture.covariance + (means - mean).T @ ((means - mean) * weights[:, None])
    standard_error = covariance.diagonal().sqrt() / 200
    assert bool(((draws.mean(0) - mean).abs() < 4 * standard_error).all())
    assert draws.T.cov().numpy() == pytest.approx(covariance.numpy(), abs=0.05)
    gaussian = GaussianDenoiser(torch.tensor([0.5, -1.0, 2.0]), COVARIANCE)
    draws = gaussian.sample(40_000, generator)
    assert bool(((draws.mean(0) - gaussian.mean).abs() < 4 * COVARIANCE.diagonal().sqrt() / 200).all())
    assert draws.T.cov().numpy() == pytest.approx(COVARIANCE.numpy(), abs=0.05)


def test_a_gaussian_of_one_variance_is_the_one_of_its_covariance_matrix(generator):
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    one, other = GaussianDenoiser(mean, 0.7), GaussianDenoiser(mean, 0.7 * torch.eye(3, dtype=torch.float64))
    state = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    levels = _level(0.6, 4), _level(0.8, 4)
    assert one(state, *levels).numpy() == pytest.approx(other(state, *levels).numpy(), abs=1e-12)
    draws = one.sample(40_000, generator)
    assert bool(((draws.mean(0) - mean).abs() < 4 * math.sqrt(0.7) / 200).all())
    assert draws.T.cov().numpy() == pytest.approx(0.7 * np.eye(3), abs=0.03)


def test_the_denoising_variance_of_a_gaussian_is_the_trace_of_the_conditional_covariance():
    denoiser = GaussianDenoiser(torch.zeros(3), COVARIANCE)
    alpha, sigma = torch.tensor([*LEVELS, (0.0, 1.0)], dtype=torch.float64).T
    for index, got in enumerate(denoiser.denoising_variance(alpha, sigma).tolist()):
        noisy = alpha[index] ** 2 * COVARIANCE + sigma[index] ** 2 * torch.eye(3, dtype=torch.float64)
        left = COVARIANCE - alpha[index] ** 2 * COVARIANCE @ torch.linalg.solve(noisy, COVARIANCE)
        assert got == pytest.approx(float(left.trace()) / 3, rel=1e-6, abs=1e-12)


def test_the_simulated_denoising_variance_of_a_mixture_of_one_is_that_of_the_gaussian():
    alpha, sigma = torch.tensor([*LEVELS, (0.0, 1.0)], dtype=torch.float64).T
    exact = GaussianDenoiser(torch.zeros(3), COVARIANCE).denoising_variance(alpha, sigma)
    simulated = MixtureDenoiser(torch.zeros(1, 3), COVARIANCE).denoising_variance(alpha, sigma)
    assert simulated.numpy() == pytest.approx(exact.numpy(), rel=4 * math.sqrt(2 / 2_000))  # squares of 2,000 Gaussians


def test_the_simulated_denoising_variance_of_a_mixture_is_the_integral_on_the_line(line_mixture):
    alpha, sigma = torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    state, noised = grid[:, None], _mixture(line_mixture, 0.6, 0.8)
    score_leaf = state.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(noised.log_prob(score_leaf).sum(), score_leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(score.sum(), score_leaf)
    # Tweedie's second moment: Var[x | s] = (sigma / alpha)^2 (1 + sigma^2 (log p)''(s)).
    variance = (0.8 / 0.6) ** 2 * (1 + 0.8**2 * curvature[:, 0])
    expected = float(torch.trapezoid(noised.log_prob(state).exp() * variance, grid))
    assert float(line_mixture.denoising_variance(alpha, sigma, count=40_000)) == pytest.approx(expected, rel=0.04)


def test_preconditioned_targets_have_unit_variance_at_every_level(generator):
    seen = {}

    class Zero(torch.nn.Module):
        def forward(self, state, level):
            seen["input"] = state
            return torch.zeros_like(state)

    class One(torch.nn.Module):
        def forward(self, state, level):
            return torch.ones_like(state)

    clean = 2.5 * (2 * torch.randint(0, 2, (20_000, 1), generator=generator) - 1).double()  # +-2.5
    noise = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    for alpha, sigma in LEVELS:
        state, levels = alpha * clean + sigma * noise, (_level(alpha, 20_000), _level(sigma, 20_000))
        skip = NetworkDenoiser(Zero(), 2.5)(state, *levels)
        scale = NetworkDenoiser(One(), 2.5)(state, *levels) - skip
        assert float(seen["input"].var()) == pytest.approx(1.0, rel=0.05)
        assert float(((clean - skip) / scale).var()) == pytest.approx(1.0, rel=0.05)


def test_a_zero_network_is_the_exact_denoiser_of_a_centred_gaussian(generator):
    network = torch.nn.Module()
    network.forward = lambda state, level: torch.zeros_like(state)
    state = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    levels = torch.tensor([0.0, 0.2, 0.9, 1.0]).double(), torch.tensor([1.0, 0.97, 0.4, 0.0]).double()
    exact = GaussianDenoiser(torch.zeros(2), 1.7**2 * torch.eye(2, dtype=torch.float64))
    got = NetworkDenoiser(network, 1.7)(state, *levels)
    assert got.numpy() == pytest.approx(exact(state, *levels).numpy(), abs=1e-12)


def test_log_snr_is_finite_from_pure_noise_to_clean():
    alpha, sigma = torch.tensor([0.0, 0.6, 1.0]), torch.tensor([1.0, 0.8, 0.0])
    assert log_snr(alpha, sigma).tolist() == pytest.approx([-10.0, math.log(0.75), 10.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianDenoiser(torch.zeros(2), torch.eye(3)), r"covariance must be \[2, 2\] .* got \(3, 3\)"),
        (lambda: GaussianDenoiser(torch.zeros(2), -torch.eye(2)), "positive definite, got smallest eigenvalue -1.0"),
        (
            lambda: GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
            "covariance must be symmetric, got one 0.5 off its transpose",
        ),
        (lambda: MixtureDenoiser(torch.zeros(3, 2), 0.0), "the variance must be positive, got 0.0"),
        (lambda: GaussianDenoiser(torch.zeros(2), 0.0), "the variance must be positive, got 0.0"),
        (lambda: MixtureDenoiser(torch.zeros(3, 2), torch.eye(3)), r"must be \[2, 2\] to match the mean, got \(3, 3\)"),
        (lambda: MixtureDenoiser(torch.zeros(3, 2), 1.0, torch.zeros(2)), r"log_weights must be \[3\] .* got \(2,\)"),
        (
            lambda: MixtureDenoiser(torch.zeros(3, 4), 1.0, event_shape=(1, 3)),
            r"event_shape \(1, 3\) does not have the 4 dimensions",
        ),
        (lambda: NetworkDenoiser(torch.nn.Identity(), -1.0), "data_std must be positive, got -1.0"),
    ],
)
def test_denoisers_refuse_what_is_no_distribution(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_denoiser_with_a_mean_is_one_without_it_around_the_mean(generator):
    torch.manual_seed(0)
    network, mean = MLP(3, 3, hidden=8, depth=1), torch.tensor([0.5, -2.0, 9.0])
    state, alpha, sigma = torch.randn(4, 3, generator=generator), torch.rand(4) + 0.1, torch.rand(4) + 0.1
    around = NetworkDenoiser(network, 0.6)(state - alpha[:, None] * mean, alpha, sigma)
    assert torch.equal(NetworkDenoiser(network, 0.6, mean)(state, alpha, sigma), mean + around)


def test_a_network_that_says_nothing_is_exact_for_a_gaussian_of_its_mean_and_variance(generator):
    mean, shape = torch.tensor([0.5, -2.0], dtype=torch.float64), (4, 2)
    silent = MLP(2, 2, hidden=4, depth=1).double()
    torch.nn.init.zeros_(silent.head.weight)
    torch.nn.init.zeros_(silent.head.bias)
    state = torch.randn(shape, generator=generator, dtype=torch.float64)
    alpha, sigma = torch.rand(2, 4, dtype=torch.float64) + 0.1
    exact = GaussianDenoiser(mean, 0.36)(state, alpha, sigma)
    assert NetworkDenoiser(silent, 0.6, mean)(state, alpha, sigma).detach().numpy() == pytest.approx(exact.numpy())
