import io
import struct

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch

import envs.problems  # noqa: F401  registers them
from envs.registry import make_problem
from evaluation import evaluate
from evaluation.figures import (
    bounds_picture,
    class_picture,
    image_picture,
    loss_picture,
    plane_picture,
    problem_pictures,
    vector_picture,
)

WIDTH = 1_296  # 9 inches at 144 dots


def size(picture):
    """Width and height in the header of a PNG."""
    assert picture.png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", picture.png[16:24])


def pixels(picture):
    return matplotlib.image.imread(io.BytesIO(picture.png))[..., :3]


def series(values, first=0):
    count = len(values)
    return np.arange(first, first + count), np.linspace(1, 60, count), np.array(values, np.float64)


@pytest.fixture
def history():
    return {
        "eval/elbo": series([-50, -9, -6, -5.5]),
        "eval/iw_log_partition": series([-9, -6, -5.2, -5.1]),
        "eval/eubo": series([90, -2, -4, -4.5]),
        "learner/loss": series(np.geomspace(100, 1, 500)),
    }


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_bounds_and_loss_are_as_wide_as_the_page_and_not_blank(history):
    for picture, height in ((bounds_picture(history, -5.0), 561), (loss_picture(history), 460)):
        width, found = size(picture)
        assert (width, found) == (WIDTH, pytest.approx(height, abs=1))
        assert (pixels(picture).min(axis=2) < 0.7).mean() > 0.005


def test_a_curve_that_was_not_measured_is_left_out_and_none_at_all_gives_no_picture(history):
    lower_only = {"eval/elbo": history["eval/elbo"]}
    assert bounds_picture(lower_only).png != bounds_picture(history).png
    assert bounds_picture({}) is None
    assert bounds_picture({"eval/elbo": series([np.nan, np.nan])}) is None
    assert loss_picture({}) is None


def test_values_that_are_not_finite_leave_a_gap_and_do_not_stop_the_drawing(history):
    history["eval/elbo"] = series([np.nan, -9, -np.inf, -5.5])
    history["learner/loss"] = series([1.0, np.nan, 0.0, -2.0])  # not positive: no logarithmic axis
    assert size(bounds_picture(history, -5.0))[0] == WIDTH
    assert size(loss_picture(history))[0] == WIDTH


def test_a_single_evaluation_is_enough(history):
    assert size(bounds_picture({key: tuple(part[:1] for part in value) for key, value in history.items()}))[0] == WIDTH
    assert size(loss_picture({"learner/loss": series([3.0])}))[0] == WIDTH


def test_the_same_numbers_give_the_same_bytes_and_the_callers_style_is_left_alone(history):
    before = dict(matplotlib.rcParams)
    assert bounds_picture(history, -5.0).png == bounds_picture(history, -5.0).png
    assert dict(matplotlib.rcParams) == before


def test_what_was_measured_is_seen_beside_what_was_not():
    """Hatching once hid the seen half of the measurement too."""
    prior, learned = draws(9, 8, 8), draws(9, 8, 8, seed=1)
    half = np.full((8, 8), np.nan)
    half[:, :4] = 0.5
    nothing = np.full((8, 8), np.nan)
    pictures = [image_picture(prior, learned, learned, seen, prior[0]) for seen in (half, nothing)]
    changed = (pixels(pictures[0]) != pixels(pictures[1])).any(axis=2)
    assert changed.mean() > 0.005


def test_a_measurement_in_other_units_has_its_own_grey_scale_and_leaves_that_of_x_alone():
    prior, learned = draws(9, 8, 8), draws(9, 8, 8, seed=1)
    counts, thousands = 100 * prior[0], 1e5 * prior[0]
    own, other = (image_picture(prior, learned, None, seen) for seen in (counts, thousands))
    assert own.png == other.png and own.caption != other.caption
    low, high = np.quantile(counts, (0.01, 0.99))
    assert own.caption.endswith(f" The measurement is shown from {low:.3g} to {high:.3g}.")
    assert "is shown from" not in image_picture(prior, learned, None, prior[0]).caption
    assert image_picture(prior, learned, None, prior[0]).png != image_picture(prior, learned, None, 0.7 * prior[0]).png


@pytest.mark.parametrize("count", [1, 3, 30])
def test_grids_take_what_samples_there_are(count):
    images = draws(count, 6, 10)
    assert size(image_picture(images, images))[0] == WIDTH
    assert size(image_picture(images, images, images, None, images[0]))[0] == WIDTH


def test_classes_with_and_without_exact_probabilities():
    learned = np.array([0.7, 0.2, 0.1])
    plain = class_picture(("a", "b", "c"), learned)
    full = class_picture(("a", "b", "c"), learned, np.array([0.5, 0.3, 0.2]), truth=1)
    assert size(plain) == size(full)
    assert "triangle" in full.caption
    assert "triangle" not in plain.caption


def test_planes_and_vectors_are_drawn_with_and_without_an_exact_posterior():
    for draw, dim in ((plane_picture, 2), (vector_picture, 1), (vector_picture, 5), (vector_picture, 100)):
        samples = draws(50, dim)
        assert size(draw(samples, samples + 1, samples))[0] == WIDTH
        assert size(draw(samples, samples + 1))[0] == WIDTH
    assert "first 64 of 100" in vector_picture(draws(50, 100), draws(50, 100)).caption


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("digits-half", {"num_steps": 2}, ["samples", "classes"]),
        ("gmm-25-to-9", {"num_steps": 2}, ["samples", "classes"]),
        ("gmm-linear", {"num_steps": 2}, ["marginals", "classes"]),
        ("gaussian-linear", {"num_steps": 2}, ["marginals"]),
    ],
)
def test_every_problem_gets_the_pictures_that_suit_it(name, options, expected):
    problem = make_problem(name, options)
    generator = torch.Generator().manual_seed(0)
    samples = problem.exact[0].sample(30, generator).float()
    prior = problem.prior.denoiser.sample(30, generator)
    evaluation = evaluate(problem, 0, samples, torch.zeros(30, dtype=torch.float64), quick=True)
    pictures = problem_pictures(problem, 0, prior, samples, evaluation)
    assert [picture.name for picture in pictures] == expected
    assert all(size(picture)[0] == WIDTH for picture in pictures)
