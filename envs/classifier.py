"""A small classifier of images: which class does x belong to?

At rest it is a folder with classifier.json (`envs.stored_network`). Others than those that ship are trained by
`learner.classifier_training`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from envs.stored_network import load_network, network_names, save_network

__all__ = ["Classifier", "classifier_names", "load_classifier", "save_classifier"]

KIND = "classifier"


class Classifier(nn.Module):
    """x [N, *D] to logits [N, C], through two hidden layers."""

    def __init__(self, event_shape: tuple[int, ...], classes: tuple[str, ...], hidden: int = 128) -> None:
        """`classes` are the names of the C classes."""
        super().__init__()
        self.event_shape, self.classes, self.hidden = tuple(event_shape), tuple(classes), hidden
        dim = 1
        for size in self.event_shape:
            dim *= size
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, len(classes))
        )

    def forward(self, value: Tensor) -> Tensor:
        """See `Classifier`; in the precision of the weights."""
        logits: Tensor = self.layers(value.flatten(1).to(next(self.parameters())))
        return logits.to(value)


def classifier_names() -> tuple[str, ...]:
    """Names of the classifiers that ship, sorted."""
    return network_names(KIND)


def save_classifier(folder: Path, classifier: Classifier, card: str) -> Path:
    """Writes a classifier to `folder`; `card` is the text of its README."""
    description = {
        "event_shape": list(classifier.event_shape),
        "classes": list(classifier.classes),
        "hidden": classifier.hidden,
    }
    return save_network(KIND, folder, classifier, description, card)


def load_classifier(name_or_folder: str | Path) -> Classifier:
    """A stored classifier, frozen.

    Raises:
        ValueError: there is none of that name or in that folder, or it cannot be read.
    """
    return load_network(
        KIND,
        name_or_folder,
        lambda tree: Classifier(tuple(tree["event_shape"]), tuple(tree["classes"]), int(tree["hidden"])),
    )
