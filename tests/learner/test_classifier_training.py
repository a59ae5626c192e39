"""A classifier of two blobs against Bayes' rule."""

import pytest
import torch

from envs.data import Dataset
from learner.classifier_training import judge, store_classifier, train_classifier


@pytest.fixture
def blobs(generator):
    """N((+-1, 0), 0.5^2 I), in equal shares."""
    labels = torch.arange(1_200) % 2
    images = 0.5 * torch.randn(1_200, 2, generator=generator)
    images[:, 0] += 2.0 * labels - 1
    return Dataset(
        name="blobs",
        train=images[:800],
        held_out=images[800:],
        train_labels=labels[:800],
        held_out_labels=labels[800:],
        split="400 of 1,200",
        source="simulated",
        licence="none",
    )


def test_a_classifier_learns_the_probabilities_of_noised_gaussians(blobs):
    """p(1 | x) = 1 / (1 + exp(-2 x_1 / v)), v = 0.5^2 + 0.5^2 with the noise."""
    classifier = train_classifier(blobs, updates=400, noise_std=0.5, hidden=32)
    value = torch.tensor([[-1.0, 0.0], [-0.3, 0.5], [0.0, 0.0], [0.3, -0.5], [1.0, 0.0]])
    expected = torch.sigmoid(2 * value[:, 0] / 0.5)
    assert classifier(value).softmax(1)[:, 1].numpy() == pytest.approx(expected.numpy(), abs=0.08)
    errors, nats = judge(classifier, blobs.held_out, blobs.held_out_labels)
    assert errors < 0.06 and nats < 0.25


def test_the_same_seed_gives_the_same_classifier_and_leaves_the_random_stream_alone(blobs):
    before = torch.get_rng_state()
    first, again = (train_classifier(blobs, updates=3, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_card_has_the_errors_and_data_without_labels_are_refused(blobs, tmp_path):
    folder = store_classifier(blobs, tmp_path / "c", updates=50)
    assert "# Classifier of blobs" in (folder / "README.md").read_text()
    unlabelled = Dataset(name="blobs", train=blobs.train, held_out=blobs.held_out, split="", source="", licence="")
    with pytest.raises(ValueError, match="'blobs' has no labels"):
        train_classifier(unlabelled)
