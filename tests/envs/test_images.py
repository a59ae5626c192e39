import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from envs import make_problem, problem_names
from envs.data import MissingDataError
from envs.problems.images.source import image_source

MNIST = Path(os.environ.get("RTB_DATA", "nowhere"), "mnist")
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="RTB_DATA has no mnist")
NAMES = [name for name in problem_names() if name.startswith("image-") and name != "image-class"]  # it measures none
LINEAR = [name for name in NAMES if make_problem(name, {"num_steps": 2}).exact]


def test_the_linear_ones_have_an_exact_posterior_and_the_others_none():
    nonlinear = {"image-hdr", "image-nonlinear-deblurring", "image-phase-retrieval", "image-quantisation"}
    assert set(NAMES) - set(LINEAR) == nonlinear
    assert len(LINEAR) == 7


@pytest.mark.parametrize("name", NAMES)
def test_the_measurement_is_of_the_held_out_image(name):
    problem = make_problem(name, {"num_steps": 2, "image": 7, "count": 3})
    images = load_digits().images[1507:1510, None] / 8 - 1
    assert problem.truth.numpy() == pytest.approx(images, abs=1e-6)
    measured = problem.measurements - problem.likelihood.sample(problem.truth, torch.Generator().manual_seed(1))
    assert float(measured.std()) == pytest.approx(0.1 * 2**0.5, rel=5 / measured.numel() ** 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_every_measurement(name):
    problem = make_problem(name, {"num_steps": 2})
    picture = problem.measurement_image(problem.measurements[0])
    assert picture.ndim == 2
    assert bool(torch.isfinite(picture).any())


@pytest.mark.parametrize("name", LINEAR)
def test_the_exact_evidence_is_that_of_the_sum_over_all_digits(name):
    """Component by component with scipy's dense Gaussian."""
    problem = make_problem(name, {"num_steps": 2})
    matrix = problem.likelihood.operator.as_matrix().numpy()
    means = load_digits().data[:1500] / 8 - 1
    covariance = 0.25**2 * matrix @ matrix.T + 0.1**2 * np.eye(len(matrix))
    y = problem.measurements[0].double().flatten().numpy()
    logs = stats.multivariate_normal(np.zeros(len(matrix)), covariance).logpdf(y - means @ matrix.T)
    assert problem.exact[0].log_partition == pytest.approx(np.logaddexp.reduce(logs) - np.log(1500), rel=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_residuals_of_the_exact_posterior_have_a_reduced_chi_square_of_one(name):
    """The truth and a posterior draw have one distribution given y: the mean over problems is one exactly."""
    problem = make_problem(name, {"num_steps": 2, "truth": "prior", "count": 40})
    squares = []
    for row, measurement in enumerate(problem.measurements):
        draws = problem.exact[row].sample(50, torch.Generator().manual_seed(row)).float()
        residual = problem.likelihood.standardised(draws, measurement.expand(50, *measurement.shape))
        squares.append(float(residual.double().square().mean()))
    error = np.std(squares) / 40**0.5
    assert np.mean(squares) == pytest.approx(1, abs=4 * error)
    assert error < 0.1


def test_quantisation_is_a_black_box_whose_surrogate_takes_rounding_for_noise(generator):
    problem = make_problem("image-quantisation", {"num_steps": 2, "levels": 9, "noise_std": 0.05})
    assert not problem.differentiable
    assert problem.simulable
    value = 2 * torch.rand(2_000, 1, 8, 8, generator=generator) - 1
    error = problem.simulate(value, generator) - value
    assert float(error.std()) == pytest.approx(problem.surrogate.noise_std, rel=0.01)
    rows = problem.measurements.expand(2_000, 1, 8, 8)
    assert problem.gradient(value, rows).shape == value.shape


def test_options_of_the_operator_and_of_all_images_are_keys_of_the_problem():
    assert make_problem("image-inpainting", {"mask": "half", "num_steps": 3}).measurements.shape == (1, 32)
    with pytest.raises(ValueError, match="unknown option 'maks' of problem 'image-inpainting'; did you mean 'mask'"):
        make_problem("image-inpainting", {"maks": "half"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": 297}, "297 held-out images, numbers 0 to 296, got 1 from number 297"),
        ({"image": -1}, "got 1 from number -1"),
        ({"count": 0}, "got 0 from number 0"),
        ({"truth": "real"}, "truth must be held-out or prior, got 'real'"),
        ({"mask": "star"}, "mask must be box, half or random, got 'star'"),
        ({"noise_std": 0.0}, "noise_std must be a positive"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("image-inpainting", options)


def test_without_the_data_the_kernel_density_of_mnist_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("RTB_DATA", raising=False)
    with pytest.raises(MissingDataError, match="needs mnist/train-images-idx3"):
        make_problem("image-inpainting", {"prior": "mnist-kde"})


@needs_mnist
def test_the_kernel_density_of_all_mnist_images_denoises_as_a_plain_sum_over_them(generator):
    """At a high, a middle and a low noise level; the last two leave out all but a few of the images."""
    source = image_source("mnist-kde", 2, "vp-cosine-zero-snr")
    density = source.density
    assert density.means.shape == (60_000, 784)
    clean = density.sample(4, generator).float()
    for alpha, sigma in ((0.1, 0.6), (0.6, 0.5), (0.97, 0.1)):
        state = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        levels = torch.full((4,), alpha), torch.full((4,), sigma)
        flat, variance = state.double().flatten(1), alpha**2 * 0.3**2 + sigma**2
        distance = torch.stack([(flat - alpha * part.double()).square().sum(1) for part in density.means])  # [C, 4]
        weights = (-0.5 * distance / variance).softmax(0)
        mean = weights.T.float() @ density.means
        expected = mean + alpha * 0.3**2 / variance * (flat - alpha * mean)
        denoised = density(state, *levels).flatten(1)
        assert denoised.numpy() == pytest.approx(expected.numpy(), abs=2e-3)
