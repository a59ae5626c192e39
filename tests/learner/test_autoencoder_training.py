"""An autoencoder of images on a plane, which two latent numbers can tell apart."""

import dataclasses

import pytest
import torch

from diffusion.stored_prior import load_prior
from envs.data import Dataset
from envs.decoder import load_decoder
from learner.autoencoder_training import store_autoencoder, train_autoencoder


@pytest.fixture
def plane(generator):
    """Images of 1 x 2 x 3 pixels, two patterns with normal weights."""
    patterns = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, -1.0, 1.0]])
    images = (torch.randn(600, 2, generator=generator) @ patterns).reshape(600, 1, 2, 3)
    return Dataset(
        name="plane", train=images[:500], held_out=images[500:], split="100 of 600", source="simulated", licence="none"
    )


def test_images_of_as_many_dimensions_as_the_latent_come_back(plane):
    encoder, decoder = train_autoencoder(plane, latent=2, hidden=32, updates=400)
    encoded = encoder(plane.train)
    assert encoded.mean(0).numpy() == pytest.approx(0.0, abs=1e-4)
    assert encoded.std(0, correction=0).numpy() == pytest.approx(1.0, abs=1e-4)
    error = (decoder(encoder(plane.held_out)) - plane.held_out).square().mean().sqrt()
    assert float(error) < 0.25  # a linear code keeps all but s^2 of the unit variance


def test_the_same_seed_gives_the_same_autoencoder_and_leaves_the_random_stream_alone(plane):
    before = torch.get_rng_state()
    (first, _), (again, _) = (train_autoencoder(plane, latent=2, updates=3, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(plane.train), again(plane.train))


def test_the_decoder_and_the_prior_of_its_latents_are_stored_with_cards(plane, tmp_path):
    few = dataclasses.replace(plane, train=plane.train[:100])
    store_autoencoder(few, tmp_path / "decoder", tmp_path / "prior", updates=20)
    decoder, prior = load_decoder(tmp_path / "decoder"), load_prior(tmp_path / "prior", 5)
    assert prior.event_shape == decoder.event_shape == (8,) and decoder.measurement_shape == (1, 2, 3)
    assert len(prior.denoiser.means) == 100
    for folder, title in (("decoder", "# Decoder of plane"), ("prior", "# Kernel density of plane-latent")):
        card = (tmp_path / folder / "README.md").read_text()
        assert card.startswith(title) and 'store_autoencoder(load_dataset("plane"), ' in card
