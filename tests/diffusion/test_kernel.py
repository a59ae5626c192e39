import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from diffusion.kernel import DenoisingCoefficients, NoisingKernel, expand, normal_log_prob, normal_sample
from diffusion.schedule import SCHEDULES, make_schedule


def _data_variance(schedule, variance):
    """v_k of data of the given variance in every direction."""
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    return variance * sigma**2 / (alpha**2 * variance + sigma**2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noising_in_two_jumps_is_noising_in_one(name):
    kernel = NoisingKernel(make_schedule(name, 6))
    for clean in range(2, 7):
        for middle in range(1, clean):
            for noisy in range(middle):
                (r1, s1), (r2, s2) = kernel.moments(clean, middle), kernel.moments(middle, noisy)
                ratio, std = kernel.moments(clean, noisy)
                assert ratio == pytest.approx(r1 * r2, rel=1e-12, abs=1e-15)
                assert std == pytest.approx(math.hypot(r2 * s1, s2), rel=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noising_from_clean_has_the_levels_of_the_schedule(name):
    schedule = make_schedule(name, 6)
    for noisy in range(6):
        moments = NoisingKernel(schedule).moments(6, noisy)
        assert moments == pytest.approx((float(schedule.alpha[noisy]), float(schedule.sigma[noisy])), rel=1e-12)


def test_noising_samples_have_the_mean_and_spread_of_their_density(generator):
    kernel = NoisingKernel(make_schedule("vp-linear", 10))
    ratio, std = kernel.moments(8, 3)
    state = torch.full((40_000, 1), 1.5, dtype=torch.float64)
    noised = kernel.sample(state, 8, 3, generator)
    assert float(noised.mean()) == pytest.approx(1.5 * ratio, abs=4 * std / 200)
    assert float(noised.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * 40_000))
    expected = stats.norm(1.5 * ratio, std).logpdf(noised[:50, 0].numpy())
    assert kernel.log_prob(noised[:50], state[:50], 8, 3).numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine-zero-snr", "ve"])
def test_a_noising_path_has_the_density_of_the_joint_gaussian_of_its_states(name, generator):
    schedule = make_schedule(name, 5)
    kernel = NoisingKernel(schedule)
    clean = torch.tensor([[0.7]], dtype=torch.float64).expand(20, 1)
    states = kernel.sample_path(clean, generator)
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    covariance = np.empty((5, 5))
    for j in range(5):
        for k in range(j, 5):  # k is cleaner: s_j = (alpha_j / alpha_k) s_k + independent noise
            shared = alpha[j] / alpha[k] * sigma[k] ** 2 if k > j else sigma[j] ** 2
            covariance[j, k] = covariance[k, j] = shared
    joint = stats.multivariate_normal(alpha[:5] * 0.7, covariance)
    assert torch.equal(states[:, -1], clean)
    terms = kernel.path_log_prob(states)
    assert terms.shape == (20, 5)
    assert terms.sum(1).numpy() == pytest.approx(joint.logpdf(states[:, :5, 0].numpy()), rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_denoising_coefficients_are_the_gaussian_of_s_k_plus_1_given_s_k_and_x(name):
    schedule = make_schedule(name, 7)
    variance = torch.zeros(7, dtype=torch.float64)
    variance[-1] = 1.0  # without uncertainty about x the last step would be deterministic
    coefficients = DenoisingCoefficients(schedule, variance)
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    for k in range(7):
        shared = alpha[k] / alpha[k + 1] * sigma[k + 1] ** 2
        joint = np.array([[sigma[k] ** 2, shared], [shared, sigma[k + 1] ** 2]])  # of (s_k, s_k+1) given x
        slope = joint[1, 0] / joint[0, 0]
        assert float(coefficients.state[k]) == pytest.approx(slope, rel=1e-12)
        assert float(coefficients.denoised[k]) == pytest.approx(alpha[k + 1] - slope * alpha[k], rel=1e-9)
        if k < 6:
            left = joint[1, 1] - slope * joint[0, 1]
            assert float(coefficients.std[k] ** 2) == pytest.approx(left, rel=1e-9)
    assert float(coefficients.std[-1]) == pytest.approx(1.0, rel=1e-12)


def test_the_variance_is_the_mean_squared_error_of_the_transition_mean_for_unequal_directions():
    schedule = make_schedule("vp-linear", 6)
    eigenvalues = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha, schedule.sigma
    errors = eigenvalues * sigma[:-1, None] ** 2 / (alpha[:-1, None] ** 2 * eigenvalues + sigma[:-1, None] ** 2)
    std = DenoisingCoefficients(schedule, errors.mean(1)).std
    for k in range(6):
        # Covariance of (s_k, s_k+1), x integrated out, in every eigendirection: the left-over variance of s_k+1.
        noisy = alpha[k] ** 2 * eigenvalues + sigma[k] ** 2
        cleaner = alpha[k + 1] ** 2 * eigenvalues + sigma[k + 1] ** 2
        shared = alpha[k] / alpha[k + 1] * cleaner
        assert float(std[k] ** 2) == pytest.approx(float((cleaner - shared**2 / noisy).mean()), rel=1e-10)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_the_standard_deviation_minimises_the_kl_divergence_from_the_true_transition(line_mixture, step):
    schedule = make_schedule("vp-linear", 5)
    means, weights = line_mixture.means[:, 0].numpy(), line_mixture.log_weights.exp().numpy()
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    a, s = alpha[step], sigma[step]

    def posterior(state):  # weights, means and the common variance of x given s_k
        noisy = a**2 * 0.3 + s**2
        densities = weights * stats.norm.pdf(state, a * means, math.sqrt(noisy))
        return densities, means + a * 0.3 / noisy * (state - a * means), 0.3 * s**2 / noisy

    def squared_error(state):  # p(s_k) E |x - x^|^2
        densities, centres, spread = posterior(state)
        centre = densities @ centres / densities.sum()
        return densities @ ((centres - centre) ** 2 + spread)

    error, _ = quad(squared_error, -12, 12, epsabs=1e-12, limit=400)
    variance = torch.ones(5, dtype=torch.float64)
    variance[step] = error
    coefficients = DenoisingCoefficients(schedule, variance)
    b = float(coefficients.denoised[step])
    r = alpha[step] / alpha[step + 1]
    known = sigma[step + 1] ** 2 * (s**2 - r**2 * sigma[step + 1] ** 2) / s**2

    def cross_entropy(log_std):  # E log N(s_k+1; mean, std^2) up to sign: the KL divergence up to its entropy
        std = math.exp(log_std)
        return log_std + 0.5 * (known + b**2 * error) / std**2

    best = minimize_scalar(cross_entropy, bounds=(-6, 3), method="bounded", options={"xatol": 1e-9})
    assert float(coefficients.std[step]) == pytest.approx(math.exp(best.x), rel=1e-5)


def test_the_standard_deviation_fits_simulated_pairs_best(line_mixture, generator):
    schedule, step, count = make_schedule("vp-cosine", 5), 2, 40_000
    kernel = NoisingKernel(schedule)
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    coefficients = DenoisingCoefficients(schedule, line_mixture.denoising_variance(alpha, sigma, count=40_000))
    cleaner = kernel.sample(line_mixture.sample(count, generator), 5, step + 1, generator)
    state = kernel.sample(cleaner, step + 1, step, generator)
    denoised = line_mixture(state, alpha[step].expand(count), sigma[step].expand(count))
    error = cleaner - coefficients.state[step] * state - coefficients.denoised[step] * denoised
    square = error.square()
    assert float(error.mean()) == pytest.approx(0, abs=4 * float(error.std()) / 200)
    standard_error = float(square.std()) / 200
    assert float(square.mean()) == pytest.approx(float(coefficients.std[step] ** 2), abs=5 * standard_error)


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "vp-cosine-zero-snr"])
def test_data_of_unit_variance_gives_the_large_variance_of_ddpm(name):
    schedule = make_schedule(name, 20)
    std = DenoisingCoefficients(schedule, _data_variance(schedule, 1.0)).std
    beta = 1 - (schedule.alpha[:-1] / schedule.alpha[1:]).square()
    assert std.square().numpy() == pytest.approx(beta.numpy(), rel=1e-9)


def test_data_of_vanishing_variance_gives_the_small_variance_of_ddpm():
    schedule = make_schedule("vp-linear", 20)
    std = DenoisingCoefficients(schedule, _data_variance(schedule, 1e-12)).std
    beta = 1 - (schedule.alpha[:-1] / schedule.alpha[1:]).square()
    small = beta * (1 - schedule.alpha[1:].square()) / (1 - schedule.alpha[:-1].square())
    assert std[:-1].square().numpy() == pytest.approx(small[:-1].numpy(), rel=1e-6)
    assert float(std[-1]) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("num_steps", [2, 5, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_transition_has_a_density_the_last_included(name, num_steps):
    schedule = make_schedule(name, num_steps)
    std = DenoisingCoefficients(schedule, _data_variance(schedule, 0.01)).std
    assert bool((std > 0).all())
    assert float(std[-1]) == pytest.approx(float(_data_variance(schedule, 0.01)[-1].sqrt()), rel=1e-12)


def test_normal_log_prob_sums_the_scalar_log_densities_over_the_event(generator):
    value, mean = torch.randn(2, 4, 2, 3, generator=generator, dtype=torch.float64)
    std = torch.tensor([0.01, 0.5, 1.0, 30.0], dtype=torch.float64)
    expected = stats.norm(mean.numpy(), std.numpy()[:, None, None]).logpdf(value.numpy()).sum((1, 2))
    assert normal_log_prob(value, mean, std).shape == (4,)
    assert normal_log_prob(value, mean, std).numpy() == pytest.approx(expected, rel=1e-12)


def test_normal_log_prob_integrates_to_one():
    grid = torch.linspace(-10, 12, 4001, dtype=torch.float64)
    density = normal_log_prob(grid[:, None], torch.ones(4001, 1, dtype=torch.float64), torch.full((4001,), 0.7)).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-7)  # 0.7 is a float32 here


def test_float32_log_densities_are_those_of_float64_to_five_digits(generator):
    value, mean = torch.randn(2, 8, 64, generator=generator, dtype=torch.float64)
    std = torch.logspace(-2, 1, 8, dtype=torch.float64)
    exact = normal_log_prob(value, mean, std)
    assert normal_log_prob(value.float(), mean.float(), std).numpy() == pytest.approx(exact.numpy(), rel=1e-5)


def test_normal_samples_follow_their_density(generator):
    draws = normal_sample(torch.full((20_000, 1), 3.0), torch.full((20_000,), 0.4), generator)
    assert stats.kstest(draws[:, 0].numpy(), stats.norm(3.0, 0.4).cdf).pvalue > 1e-3


def test_expand_multiplies_per_row_in_the_dtype_of_the_state():
    state = torch.ones(2, 3, 4)
    product = expand(torch.tensor([2.0, 5.0], dtype=torch.float64), state) * state
    assert product.dtype == torch.float32
    assert product.sum((1, 2)).tolist() == [24.0, 60.0]


@pytest.mark.parametrize(
    ("variance", "message"),
    [
        (torch.ones(4), r"denoising_variance must be \[5\] and non-negative, got shape \(4,\)"),
        (torch.tensor([1, 1, -0.25, 1, 1]), r"must be \[5\] and non-negative, .*smallest value -0.25"),
        (torch.tensor([1, 1, float("nan"), 1, 1]), r"must be \[5\] and non-negative, .*smallest value nan"),
        (torch.zeros(5), "every transition needs a positive standard deviation; raise the denoising variance"),
    ],
)
def test_denoising_coefficients_refuse_variances_without_a_density(variance, message):
    with pytest.raises(ValueError, match=message):
        DenoisingCoefficients(make_schedule("vp-linear", 5), variance)


@pytest.mark.parametrize(("clean", "noisy"), [(2, 2), (1, 3), (6, 0), (3, -1)])
def test_noising_refuses_to_go_towards_the_clean_end(clean, noisy):
    with pytest.raises(ValueError, match=rf"later to an earlier index in 0..5, got {clean} -> {noisy}"):
        NoisingKernel(make_schedule("vp-linear", 5)).moments(clean, noisy)
