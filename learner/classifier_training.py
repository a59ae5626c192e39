"""Training of a classifier, for likelihoods of a class: cross-entropy on the noised images of a labelled data set.

Noise of the size of a kernel density's kernels makes it a classifier of what such a prior draws. Its probabilities are
a likelihood, so what counts is the held-out cross-entropy, not the share of errors alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from envs.classifier import Classifier, save_classifier
from envs.data import Dataset

__all__ = ["store_classifier", "train_classifier"]

BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 128, 1e-3, 0.05


def train_classifier(
    data: Dataset, *, updates: int = 2_000, noise_std: float = 0.25, hidden: int = 128, seed: int = 0
) -> Classifier:
    """A classifier of `data`, whose images get noise of `noise_std` (units of x), after `updates` steps of AdamW.

    Raises:
        ValueError: the data have no labels.
    """
    images, labels = data.train, data.train_labels
    if labels is None:
        raise ValueError(f"the data set {data.name!r} has no labels, so there is nothing to classify")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(data.event_shape, tuple(str(name) for name in range(int(labels.max()) + 1)), hidden)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        noised = images[rows] + noise_std * torch.randn(BATCH_SIZE, *data.event_shape, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(classifier(noised), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return classifier.requires_grad_(False).eval()


def judge(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """(share of errors, cross-entropy in nats) on `images` [N, *D] with `labels` [N]."""
    logits = classifier(images)
    return float((logits.argmax(1) != labels).double().mean()), float(nn.functional.cross_entropy(logits, labels))


def store_classifier(
    data: Dataset, folder: Path, *, updates: int = 2_000, noise_std: float = 0.25, seed: int = 0
) -> Path:
    """Trains a classifier of `data` and writes it with its card."""
    classifier = train_classifier(data, updates=updates, noise_std=noise_std, seed=seed)
    assert data.held_out_labels is not None
    errors, nats = judge(classifier, data.held_out, data.held_out_labels)
    noise = noise_std * torch.randn(data.held_out.shape, generator=torch.Generator().manual_seed(seed))
    noised_errors, noised_nats = judge(classifier, data.held_out + noise, data.held_out_labels)
    count = sum(parameter.numel() for parameter in classifier.parameters())
    card = f"""# Classifier of {data.name}

Two hidden layers of {classifier.hidden}, {count:,} parameters, x of shape {list(data.event_shape)}; {updates:,} updates
of AdamW on images with noise of standard deviation {noise_std:g}, seed {seed}.

| held out | errors | cross-entropy, nats |
| --- | ---: | ---: |
| as they are | {100 * errors:.1f} % | {nats:.3f} |
| with the same noise | {100 * noised_errors:.1f} % | {noised_nats:.3f} |

- Data: {data.source}.
- Split: {data.split}.
- Licence of the data: {data.licence}.
- Made by `learner.classifier_training.store_classifier(load_dataset("{data.name}"), folder)`.
"""
    return save_classifier(folder, classifier, card)
