"""Weights of one run as the start of another."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffusion.posterior import Posterior
from system.errors import ConfigError

__all__ = ["start_from", "write_init"]


def write_init(path: Path, posterior: Posterior) -> None:
    """Writes the parameters of `posterior` by name."""
    save_file({name: value.detach().clone().contiguous() for name, value in posterior.named_parameters()}, path)


def start_from(posterior: Posterior, path: Path) -> None:
    """Gives `posterior` the parameters in the file `path`.

    Raises:
        ConfigError: it is not such a file, or a parameter is missing, too many or of another shape; the first is named.
    """
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"init: cannot read the weights in {path}: {error}") from None
    own = dict(posterior.named_parameters())
    for name in [*own, *saved]:
        here, there = (tuple(values[name].shape) if name in values else None for values in (own, saved))
        if here != there:
            raise ConfigError(
                f"init: the posterior of that run is another one: {name} has shape {there or 'none there'}, and "
                f"{here or 'none'} by this configuration; take the run's own section posterior, and the same problem"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
