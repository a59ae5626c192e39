"""A small classifier of images at rest: which class does x belong to?

classifier.json      shape of x, the classes, how the network is built
weights.safetensors  the network's weights
README.md            its card

One that ships with this package is known by its name, any other by the path of its folder. Others are trained by
`learner.classifier_training`. Nothing is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.registry import nearest

__all__ = ["SHIPPED", "Classifier", "classifier_names", "load_classifier", "save_classifier"]

FORMAT = 1
SHIPPED = Path(__file__).with_name("classifiers")
"""Folder of the classifiers that ship."""
DESCRIPTION, WEIGHTS, CARD = "classifier.json", "weights.safetensors", "README.md"


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
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{DESCRIPTION}")))


def save_classifier(folder: Path, classifier: Classifier, card: str) -> Path:
    """Writes a classifier to `folder`; `card` is the text of its README."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {
        "format": FORMAT,
        "event_shape": list(classifier.event_shape),
        "classes": list(classifier.classes),
        "hidden": classifier.hidden,
    }
    (folder / DESCRIPTION).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in classifier.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets none but its owner read it
    return folder


def load_classifier(name_or_folder: str | Path) -> Classifier:
    """A stored classifier, frozen.

    Raises:
        ValueError: there is none of that name or in that folder, or it cannot be read.
    """
    known = isinstance(name_or_folder, str) and "/" not in name_or_folder
    if known and name_or_folder not in classifier_names():
        raise ValueError(
            f"no classifier named {name_or_folder!r} ships; {nearest(str(name_or_folder), classifier_names())}"
        )
    folder = SHIPPED / name_or_folder if known else Path(name_or_folder)
    try:
        tree = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise ValueError(f"it has format {tree['format']}, this version reads {FORMAT}")
        classifier = Classifier(tuple(tree["event_shape"]), tuple(tree["classes"]), int(tree["hidden"]))
        classifier.load_state_dict(load_file(folder / WEIGHTS))
    except KeyError as error:
        raise ValueError(f"cannot read the classifier in {folder}: {DESCRIPTION} has no {error.args[0]!r}") from None
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot read the classifier in {folder}: {reason}") from None
    return classifier.requires_grad_(False).eval()
