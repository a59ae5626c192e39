"""Networks under EDM's preconditioning or of flow matching: network.json states them, network.safetensors has them.

    {"kind": "edm", "event_shape": [3, 32, 32], "sigma_data": 0.5,
     "network": {"kind": "diffusers-unet", "config": {"in_channels": 3, "out_channels": 3, "...": "..."}}}

`kind` and what belongs to it are those of a stored prior's denoiser (`diffusion.registry`); the weights are those of
the network by itself, under its own names.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from diffusion.imported.base import ImportedDenoiser
from diffusion.imported.diffusers_unet import DiffusersUNet
from diffusion.imported.imported_prior import ImportedPrior
from diffusion.imported.source import fill, read_json, read_weights

__all__ = ["DESCRIPTION", "KINDS", "read_network_folder"]

DESCRIPTION, WEIGHTS = "network.json", "network.safetensors"
KINDS = ("edm", "flow")


def read_network_folder(source: Path, shape: tuple[int, ...] | None = None) -> ImportedPrior:
    """The prior that is stated in the folder `source`; `shape` is that of x where network.json does not say it.

    Raises:
        ValueError: a file is missing or pickled, a value in it unknown, or network and weights disagree.
    """
    from diffusion.registry import make_denoiser  # which imports the kinds

    stated = read_json(source / DESCRIPTION)
    kind = stated.get("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} in {source / DESCRIPTION}; expected one of {', '.join(KINDS)}")
    event_shape = tuple(stated.pop("event_shape", None) or shape or ())
    if not event_shape:
        raise ValueError(f"{source / DESCRIPTION} does not state event_shape, the shape of x; give it: --shape C H W")
    if shape is not None and shape != event_shape:
        raise ValueError(f"{source / DESCRIPTION} states x of shape {list(event_shape)}, got --shape {list(shape)}")
    data_std = float(stated.pop("data_std", stated.get("sigma_data", 0.5) if kind == "edm" else 1.0))
    denoiser = make_denoiser(stated, event_shape, data_std)
    assert isinstance(denoiser, ImportedDenoiser)
    network = _bare(denoiser.network)
    weights = read_weights(source / WEIGHTS)
    fill(network, weights, str(source / WEIGHTS))
    count = sum(parameter.numel() for parameter in network.parameters())
    options = ", ".join(f"{name} {value}" for name, value in stated.items() if name not in ("kind", "network"))
    return ImportedPrior(
        denoiser=denoiser.requires_grad_(False).eval(),
        description=stated,
        event_shape=event_shape,
        data_std=data_std,
        variance="small",
        statements=(
            f"Network: {stated['network'].get('kind')} of {count:,} parameters, x of shape {list(event_shape)}.",
            f"It is of kind {kind}" + (f", {options}." if options else "."),
            "The noise of its transitions is that of ancestral Euler steps; the last one, which has none there, keeps "
            "that of its level.",
        ),
    )


def _bare(network: nn.Module) -> nn.Module:
    """The model of diffusers out of what is around it: files have its names."""
    return network.network if isinstance(network, DiffusersUNet) else network
