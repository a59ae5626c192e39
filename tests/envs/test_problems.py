import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits

from actors.rollout import rollout
from diffusion.schedule import SCHEDULES
from envs import make_problem

NAMES = ["digits-half", "gaussian-linear", "gmm-25-to-9", "gmm-linear"]


@pytest.fixture(scope="module")
def digits():
    return make_problem("digits-half", {"num_steps": 10})


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_problem_ends_noise_free_and_has_a_density_at_every_step(name):
    problem = make_problem(name, {"num_steps": 5})
    assert problem.name == name
    assert problem.num_steps == 5
    assert bool((problem.prior.std > 0).all())
    assert problem.prior.schedule.has_zero_terminal_snr
    value = problem.exact[0].sample(3).float()
    assert problem.log_likelihood(value, torch.zeros(3, dtype=torch.int64)).shape == (3,)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["gaussian-linear", "gmm-25-to-9", "gmm-linear"])
def test_every_problem_can_be_put_on_every_schedule(name, schedule):
    assert make_problem(name, {"num_steps": 4, "schedule": schedule}).num_steps == 4


@pytest.mark.parametrize("name", ["gaussian-linear", "gmm-linear"])
def test_a_seed_gives_the_same_problem_and_another_seed_another(name):
    first, again, other = (make_problem(name, {"num_steps": 4, "seed": seed}) for seed in (3, 3, 4))
    assert torch.equal(first.measurements, again.measurements)
    assert first.exact[0].log_partition == again.exact[0].log_partition
    assert not torch.equal(first.measurements, other.measurements)


@pytest.mark.parametrize("name", ["digits-half", "gaussian-linear", "gmm-linear"])
def test_the_measurement_is_of_the_truth(name):
    problem = make_problem(name, {"num_steps": 4})
    noise = problem.measurements.double() - problem.likelihood.operator(problem.truth.double())
    deviates = noise / problem.likelihood.noise_std
    assert float(deviates.square().sum()) == pytest.approx(deviates.numel(), abs=4 * math.sqrt(2 * deviates.numel()))


def test_the_gaussian_prior_has_the_stated_eigenvalues():
    problem = make_problem("gaussian-linear", {"dim": 5, "measurement_dim": 2, "num_steps": 4})
    assert problem.prior.denoiser.eigenvalues.tolist() == pytest.approx(np.linspace(0.25, 2.0, 5).tolist())
    assert tuple(problem.likelihood.operator.matrix.shape) == (2, 5)


def test_the_density_ratio_of_the_toy_averages_to_one_under_its_prior(generator):
    problem = make_problem("gmm-25-to-9", {"num_steps": 4})
    draws = problem.prior.denoiser.sample(100_000, generator)
    ratio = problem.likelihood.log_prob(draws, torch.zeros(1)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / math.sqrt(100_000))
    assert problem.exact[0].log_partition == 0.0


def test_the_density_ratio_of_the_toy_is_the_quotient_of_two_hand_made_mixtures(generator):
    problem = make_problem("gmm-25-to-9", {"num_steps": 4})
    value = (24 * torch.rand(50, 2, generator=generator, dtype=torch.float64) - 12).numpy()
    grid = np.array([(x, y) for x in (-10, -5, 0, 5, 10) for y in (-10, -5, 0, 5, 10)])
    nine = np.array([(-10, -5), (-5, -10), (-5, 0), (10, -5), (0, 0), (0, 5), (5, -5), (5, 0), (5, 10)])
    weights = np.array([4, 10, 4, 5, 10, 5, 4, 15, 4])

    def log_density(means, mass):
        distance = ((value[:, None] - means) ** 2).sum(2)
        return logsumexp(-distance / 0.6, axis=1, b=mass / mass.sum()) - math.log(2 * math.pi * 0.3)

    expected = log_density(nine, weights) - log_density(grid, np.ones(25))
    got = problem.likelihood.log_prob(torch.from_numpy(value), torch.zeros(1))
    assert got.numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_exact_class_probabilities_of_the_toy_are_the_weights_of_the_nine_modes(generator):
    problem = make_problem("gmm-25-to-9", {"num_steps": 4})
    exact = problem.class_probabilities(0)
    named = dict(zip(problem.classes.names, exact.tolist(), strict=True))
    assert named["(5, 0)"] == pytest.approx(15 / 61)
    assert named["(-10, -5)"] == pytest.approx(4 / 61)
    assert sum(value > 0 for value in named.values()) == 9
    draws = problem.exact[0].sample(20_000, generator)
    assert problem.classes.probabilities(draws).mean(0).numpy() == pytest.approx(exact.numpy(), abs=4 * 0.5 / 141)


def test_the_prior_chain_of_the_toy_visits_every_mode_equally(generator):
    problem = make_problem("gmm-25-to-9")
    end = rollout(problem, None, torch.zeros(4_000, dtype=torch.int64), generator=generator).states[:, -1]
    shares = problem.classes.probabilities(end).mean(0)
    assert shares.numpy() == pytest.approx(np.full(25, 0.04), abs=4 * math.sqrt(0.04 * 0.96 / 4_000) + 0.005)


def test_the_exact_posterior_of_the_linear_mixture_is_that_of_importance_sampling(generator):
    problem = make_problem("gmm-linear", {"dim": 2, "modes": 3, "num_steps": 4})
    draws = problem.prior.denoiser.sample(200_000, generator)
    log_weight = problem.likelihood.log_prob(draws, problem.measurements.double())
    weight = log_weight.exp()
    error = float(weight.std() / weight.mean()) / math.sqrt(200_000)
    exact = problem.exact[0]
    assert exact.log_partition == pytest.approx(float(weight.mean().log()), abs=4 * error)
    weight = weight / weight.sum()
    mean = weight @ draws
    assert bool(((exact.mean - mean).abs() < 4 * (weight**2 @ (draws - mean).square()).sqrt()).all())
    classes = problem.classes.probabilities(draws)
    shares = weight @ classes
    errors = (weight**2 @ (classes - shares).square()).sqrt()
    assert bool(((problem.class_probabilities(0) - shares).abs() < 4 * errors).all())


def test_the_linear_mixture_keeps_every_mode_alive():
    problem = make_problem("gmm-linear", {"num_steps": 4})
    assert float(problem.class_probabilities(0).min()) > 1e-4
    norms = (problem.prior.denoiser.means @ problem.likelihood.operator.matrix.T).norm(dim=1)
    assert norms.tolist() == pytest.approx([1.5 * 0.3] * 8)


def test_clean_responsibilities_are_bayes_rule(plane_mixture, generator):
    value = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    component = stats.multivariate_normal(cov=plane_mixture.covariance.numpy())
    joint = np.stack([component.logpdf((value - mean).numpy()) for mean in plane_mixture.means], 1)
    expected = softmax(joint + plane_mixture.log_weights.numpy(), axis=1)
    assert plane_mixture.classify(value).numpy() == pytest.approx(expected, abs=1e-9)


def test_the_digit_posterior_weighs_the_training_digits_by_their_left_halves(digits):
    images = load_digits().data / 8 - 1
    left = np.arange(64).reshape(8, 8)[:, :4].ravel()
    y = digits.measurements[0].double().numpy()
    variance = 0.25**2 + 0.3**2
    joint = -0.5 * ((y - images[:1500, left]) ** 2).sum(1) / variance - 16 * math.log(2 * math.pi * variance)
    assert digits.exact[0].log_partition == pytest.approx(logsumexp(joint) - math.log(1500), rel=1e-10)
    classes = [softmax(joint)[load_digits().target[:1500] == label].sum() for label in range(10)]
    assert digits.class_probabilities(0).numpy() == pytest.approx(np.array(classes), abs=1e-10)
    assert digits.classes.names == tuple("0123456789")


def test_the_digit_mean_keeps_training_pixels_where_nothing_was_seen(digits):
    images = load_digits().data[:1500] / 8 - 1
    weights = digits.exact[0].log_weights.exp().numpy()
    right = digits.exact[0].mean.reshape(8, 8)[:, 4:].numpy()
    assert right == pytest.approx((weights @ images).reshape(8, 8)[:, 4:], abs=1e-10)
    variance = digits.exact[0].covariance.diagonal().reshape(8, 8)
    assert variance[:, 4:].numpy() == pytest.approx(np.full((8, 4), 0.25**2), rel=1e-12)
    assert variance[:, :4].numpy() == pytest.approx(np.full((8, 4), 1 / (1 / 0.25**2 + 1 / 0.3**2)), rel=1e-9)


def test_the_true_digit_is_not_among_the_components(digits):
    truth = digits.truth.double().flatten()
    assert truth.numpy() == pytest.approx(load_digits().data[1520] / 8 - 1)
    assert float((digits.prior.denoiser.means - truth).norm(dim=1).min()) > 0.1


def test_the_picture_of_a_digit_measurement_is_blank_on_the_right(digits):
    picture = digits.measurement_image(digits.measurements[0])
    assert picture[:, :4].flatten().tolist() == digits.measurements[0].tolist()
    assert bool(picture[:, 4:].isnan().all())
