"""A small network at rest, of a kind: a classifier, a decoder.

<kind>.json          how the network is built, and what it is of
weights.safetensors  the network's weights
README.md            its card

One that ships with this package is known by its name, any other by the path of its folder. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion.registry import nearest

__all__ = ["load_network", "network_names", "save_network"]

FORMAT = 1
WEIGHTS, CARD = "weights.safetensors", "README.md"

Network = TypeVar("Network", bound=nn.Module)


def network_names(kind: str) -> tuple[str, ...]:
    """Names of the networks of `kind` that ship, sorted."""
    return tuple(sorted(path.parent.name for path in _shipped(kind).glob(f"*/{kind}.json")))


def save_network(kind: str, folder: Path, network: nn.Module, description: Mapping[str, Any], card: str) -> Path:
    """Writes `network` to `folder`; `description` is what JSON can hold of how to build it, `card` its README."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"format": FORMAT, **description}
    (folder / f"{kind}.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets none but its owner read it
    return folder


def load_network(kind: str, name_or_folder: str | Path, build: Callable[[dict[str, Any]], Network]) -> Network:
    """The stored network of `kind` that `build` makes of its description, frozen.

    Raises:
        ValueError: there is none of that name or in that folder, or it cannot be read.
    """
    known, names = isinstance(name_or_folder, str) and "/" not in name_or_folder, network_names(kind)
    if known and name_or_folder not in names:
        raise ValueError(f"no {kind} named {name_or_folder!r} ships; {nearest(str(name_or_folder), names)}")
    folder = _shipped(kind) / name_or_folder if known else Path(name_or_folder)
    try:
        tree = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise ValueError(f"it has format {tree['format']}, this version reads {FORMAT}")
        network = build(tree)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except KeyError as error:
        raise ValueError(f"cannot read the {kind} in {folder}: {kind}.json has no {error.args[0]!r}") from None
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot read the {kind} in {folder}: {reason}") from None
    return network.requires_grad_(False).eval()


def _shipped(kind: str) -> Path:
    return Path(__file__).with_name(f"{kind}s")
