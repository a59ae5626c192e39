"""Latents through a decoder and an instrument: the decoder at rest, the gradient, and the reference posterior."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import envs.decoder
from envs import make_problem
from envs.classifier import load_classifier
from envs.data import load_dataset
from envs.decoder import Decoder, decoder_names, load_decoder, save_decoder
from envs.problems.latent import INSTRUMENTS
from evaluation.figures import problem_pictures

NAMES = [f"latent-{instrument}" for instrument in INSTRUMENTS]


def test_a_decoder_comes_back_and_what_is_none_is_refused_by_name(tmp_path):
    decoder = Decoder(3, (1, 2, 4), hidden=5, data="blobs")
    folder = save_decoder(tmp_path / "d", decoder, "# Card\n")
    again, value = load_decoder(folder), torch.randn(4, 3)
    assert torch.equal(again(value), decoder(value)) and again.data == "blobs"
    assert again(value.double()).dtype == torch.float64 and again(value).shape == (4, *again.measurement_shape)
    assert (folder / "README.md").read_text() == "# Card\n"
    (folder / "decoder.json").write_text('{"format": 1, "latent": 3}')
    with pytest.raises(ValueError, match=r"cannot read the decoder in .*has no 'image_shape'"):
        load_decoder(folder)
    with pytest.raises(ValueError, match=r"no decoder named 'digit' ships; did you mean 'digits'"):
        load_decoder("digit")


def test_the_decoder_that_ships_has_a_card_and_its_draws_look_like_digits_to_a_classifier(generator):
    card = (Path(envs.decoder.__file__).parent / "decoders" / "digits" / "README.md").read_text()
    assert decoder_names() == ("digits",) and load_decoder("digits").data == "digits"
    assert card.startswith("# Decoder of digits\n") and "| held out | " in card and "Licence of the data: " in card
    problem = make_problem("latent-inpainting", {"num_steps": 2})
    draws = problem.prior.denoiser.sample(2_000, generator)
    sure = load_classifier("digits")(problem.image(draws)).softmax(1).max(1).values
    assert float(sure.mean()) > 0.9  # 0.97 on the images themselves
    assert draws.std(0, correction=0).numpy() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_the_measurement_is_of_the_decoded_truth_or_of_a_held_out_image(name):
    problem = make_problem(name, {"num_steps": 2, "count": 40})
    noise = problem.measurements - problem.likelihood.operator(problem.truth)
    assert float(noise.std()) == pytest.approx(0.2, rel=4 / math.sqrt(2 * noise.numel()))
    real = make_problem(name, {"num_steps": 2, "count": 40, "truth": "held-out", "image": 7})
    images = load_dataset("digits").held_out[7:47]
    noise = real.measurements - real.likelihood.operator.outer(images)
    assert float(noise.std()) == pytest.approx(0.2, rel=4 / math.sqrt(2 * noise.numel()))
    assert real.truth is None


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_through_the_decoder_is_that_of_finite_differences(name, generator):
    problem = make_problem(name, {"num_steps": 2})
    likelihood = problem.likelihood.double()
    value = problem.prior.denoiser.sample(4, generator)
    measurement = problem.measurements.double().expand(4, *problem.measurements.shape[1:])
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    gradient, step = likelihood.gradient(value, measurement), 1e-6
    above, below = (likelihood.log_prob(value + sign * step * direction, measurement) for sign in (1, -1))
    slope = (gradient * direction).sum(1)
    assert slope.numpy() == pytest.approx(((above - below) / (2 * step)).numpy(), rel=1e-5)


def test_the_evidence_is_that_of_draws_of_the_prior_where_the_noise_is_large(generator):
    """Plain Monte Carlo over draws of the mixture, and the posterior mean beside it."""
    problem = make_problem("latent-super-resolution", {"num_steps": 2, "noise_std": 1.5})
    exact = problem.exact[0]
    draws = problem.prior.denoiser.sample(40_000, generator)
    y = problem.measurements.double()
    residual = y - problem.likelihood.operator(draws)
    logs = -0.5 * residual.flatten(1).square().sum(1) / 1.5**2 - 16 * math.log(1.5 * math.sqrt(2 * math.pi))
    weights = logs.softmax(0)
    effective = float(1 / weights.square().sum())
    assert effective > 2_000
    error = math.hypot(exact.log_partition_error, effective**-0.5)
    assert exact.log_partition == pytest.approx(float(logs.logsumexp(0)) - math.log(40_000), abs=4 * error)
    spread = (exact.variance * (1 / exact.effective_number + 1 / effective)).sqrt()
    assert bool(((exact.mean - weights @ draws).abs() < 5 * spread).all())
    shares = problem.class_probabilities(0)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert shares.numpy() == pytest.approx((weights @ problem.classes.probabilities(draws)).numpy(), abs=0.05)


def test_reports_show_the_decoded_images():
    """The same picture as of a problem whose x are those images themselves."""
    problem = dataclasses.replace(make_problem("latent-inpainting", {"num_steps": 2}), exact=(), classes=None)
    decode = problem.image
    of_images = dataclasses.replace(problem, image=None, truth=decode(problem.truth))
    draws = problem.prior.denoiser.sample(4, torch.Generator().manual_seed(0)).float()
    nothing = SimpleNamespace(class_probabilities=None)
    (shown,) = problem_pictures(problem, 0, draws, draws + 0.1, nothing)
    (expected,) = problem_pictures(of_images, 0, decode(draws), decode(draws + 0.1), nothing)
    assert problem.image_shape == (8, 8) and shown.png == expected.png


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "lorenz63-kde"}, r"takes latents of shape \[8\], but x of prior lorenz63-kde has shape \[3\]"),
        ({"decoder": "faces"}, "no decoder named 'faces' ships"),
        ({"truth": "held out"}, "truth must be held-out or prior, got 'held out'"),
        ({"truth": "held-out", "image": 297}, "some of the 297 held-out images"),
        ({"count": 0}, "count must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("latent-inpainting", {"num_steps": 2, **options})
