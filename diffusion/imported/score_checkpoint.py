"""Checkpoints of the package score_models: a folder with model_hparams.json and checkpoint_*.safetensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.imported.imported_prior import ImportedPrior
from diffusion.imported.score_model import check_network, score_model_denoiser
from diffusion.imported.source import fill, read_json, read_weights, refuse_pickle

__all__ = ["HYPERPARAMETERS", "read_score_checkpoint"]

HYPERPARAMETERS = "model_hparams.json"
SDES = {"ve": "ve", "vesde": "ve", "vp": "vp", "vpsde": "vp"}
OF_SDE = ("model_architecture", "sde", "T", "epsilon", "sigma_min", "sigma_max", "beta_min", "beta_max")


def read_score_checkpoint(source: Path, shape: tuple[int, ...] | None = None) -> ImportedPrior:
    """The prior that a checkpoint folder holds; `shape` is that of x, which an image network does not state.

    Raises:
        ValueError: a file is missing or pickled, the network conditional or not that of its weights, its SDE unknown.
    """
    stated = read_json(source / HYPERPARAMETERS)
    architecture = str(stated.get("model_architecture", "ncsnpp")).lower()
    arguments = {name: value for name, value in stated.items() if name not in OF_SDE}
    check_network(architecture, arguments)
    event_shape = _event_shape(architecture, arguments, shape)
    description: dict[str, Any] = {
        "kind": "score-models",
        "architecture": architecture,
        "arguments": arguments,
        "sde": _sde(stated, source),
        "final_time": float(stated.get("T", 1.0)),
        # Without noise at time 0 the VP SDE has no score there: the package starts where it says here.
        "epsilon": float(stated.get("epsilon", 1e-5 if _sde(stated, source) == "vp" else 0.0)),
        **{name: float(stated[name]) for name in ("sigma_min", "sigma_max", "beta_min", "beta_max") if name in stated},
    }
    path = _newest(source)
    weights = read_weights(path)
    denoiser = score_model_denoiser(
        event_shape, 1.0, **{name: value for name, value in description.items() if name != "kind"}
    )
    network = denoiser.network.get_submodule("network")
    fill(network, _bare(weights), str(path))
    count = sum(value.numel() for value in network.state_dict().values())
    options = ", ".join(f"{name} {stated[name]}" for name in OF_SDE[2:] if name in stated)
    return ImportedPrior(
        denoiser=denoiser.requires_grad_(False).eval(),
        description=description,
        event_shape=event_shape,
        data_std=1.0,
        variance="small",
        statements=(
            f"Network: {architecture} of score_models, {count:,} numbers, x of shape {list(event_shape)}; the package "
            "is imported when the prior is loaded.",
            f"SDE: {description['sde']}, {options}.",
            "Its sampler is Euler-Maruyama; the transitions of this chain are exact for a given estimate of x instead, "
            "with the noise of ancestral steps.",
        ),
    )


def _sde(stated: dict[str, Any], source: Path) -> str:
    """The SDE's name, by the package's own rules where it is not stated."""
    guessed = (
        "tsve" if "t_star" in stated else "ve" if "sigma_min" in stated else "vp" if "beta_min" in stated else None
    )
    name = str(stated.get("sde", guessed)).lower()
    if name not in SDES:
        raise ValueError(f"unknown SDE {name!r} in {source / HYPERPARAMETERS}; expected ve or vp")
    return SDES[name]


def _event_shape(architecture: str, arguments: dict[str, Any], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if architecture == "mlp":
        stated = (int(arguments.get("dimensions", 0)),)
        if shape is not None and shape != stated:
            raise ValueError(f"the network states x of shape {list(stated)}, got --shape {list(shape)}")
        return stated
    channels, dimensions = int(arguments.get("channels", 1)), int(arguments.get("dimensions", 2))
    if shape is None or len(shape) != 1 + dimensions or shape[0] != channels:
        got = "nothing" if shape is None else list(shape)
        raise ValueError(
            f"score_models does not store the shape of x; give it: --shape {channels} and {dimensions} sizes, got {got}"
        )
    return shape


def _newest(source: Path) -> Path:
    """The checkpoint of the highest number, which is the last one in its name."""
    found = sorted(source.glob("checkpoint*.safetensors"), key=_number)
    if not found:
        pickles = sorted(source.glob("checkpoint*.pt"), key=_number)
        for path in pickles[-1:]:
            refuse_pickle(path)
        raise ValueError(f"there is no checkpoint*.safetensors in {source}")
    return found[-1]


def _number(path: Path) -> int:
    numbers = re.findall("[0-9]+", path.stem)
    return int(numbers[-1]) if numbers else -1


def _bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights, also where its `ScoreModel` was saved around it."""
    prefix = "model."
    if weights and all(name.startswith(prefix) for name in weights):
        return {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
