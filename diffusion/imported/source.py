"""Files of other libraries: JSON and safetensors are read, nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

__all__ = ["STATE_DICT_LINE", "fill", "read_json", "read_model", "read_weights", "refuse_pickle"]

STATE_DICT_LINE = (
    'python -c "import sys, torch, safetensors.torch as s; p = sys.argv[1]; '
    "w = torch.load(p, map_location='cpu', weights_only=True); "
    "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, p.rsplit('.', 1)[0] + '.safetensors')\" {}"
)
"""What makes safetensors of a pickled state dict, {} standing for the file."""

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {path.parent}, which holds {_listed(path.parent)}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a mapping, got a {type(value).__name__}")
    return value


def read_weights(path: Path, convert: str = STATE_DICT_LINE) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `convert` is the way out where there are pickled weights instead.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        refuse_pickle(path.parent, convert)
        raise ValueError(f"there is no {path.name} in {path.parent}, which holds {_listed(path.parent)}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def read_model(kind: Any, folder: Path) -> Any:  # noqa: ANN401  diffusers has no types
    """The model of diffusers of class `kind` in `folder`, by its own loader, which knows the names of older versions.

    Raises:
        ValueError: no safetensors, or weights that are not those of the config.
    """
    if not [*folder.glob("*.safetensors")]:
        made = f"M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        refuse_pickle(folder, f'python -c "from diffusers import {kind.__name__} as M; {made}"')
        raise ValueError(f"there are no safetensors in {folder}, which holds {_listed(folder)}")
    try:
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"diffusers cannot read {folder}: {error}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ValueError(
                f"config and weights in {folder} disagree: {len(info[what])} {what.replace('_', ' ')}, "
                f"{sorted(map(str, info[what]))[0]} the first"
            )
    return model.eval().requires_grad_(False)


def refuse_pickle(source: Path, convert: str = STATE_DICT_LINE) -> None:
    """Raises `ValueError` where `source` is a pickle, or a folder of some.

    `convert` is the line that makes safetensors of it, {} standing for the file.
    """
    found = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
    pickles = [path for path in found if path.suffix in PICKLED]
    if pickles:
        line = convert.replace("{}", str(pickles[0]))
        raise ValueError(
            f"{pickles[0]} is a pickle, which runs whatever code its author put there when it is read: it is not read "
            f"here. Where you trust it, make safetensors of it: {line}"
        )


def fill(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Loads `weights` into `network`, frozen and in evaluation mode; `what` names their file.

    Raises:
        ValueError: names or shapes do not agree.
    """
    expected = network.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        disagree = [
            f"{len(names)} {which}, {names[0]!r} the first"
            for which, names in (("missing", missing), ("unknown", unexpected))
            if names
        ]
        raise ValueError(f"the weights in {what} are not those of the network that is stated: {'; '.join(disagree)}")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise ValueError(
                f"the weights in {what} are not those of the network that is stated: {name!r} must be "
                f"{list(value.shape)}, got {list(weights[name].shape)}"
            )
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)


def _listed(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing: there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
