"""What a reader of another library's files makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion.imported.base import ImportedDenoiser

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

__all__ = ["ImportedPrior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPrior:
    """A denoiser, and what was stated beside it."""

    denoiser: ImportedDenoiser
    """With its weights, frozen."""
    description: Mapping[str, Any]
    """How it is built, see `diffusion.registry`."""
    event_shape: tuple[int, ...]
    """Shape of x."""
    data_std: float
    """Standard deviation of x per dimension, as the library's process presumes it."""
    variance: str
    """What the library's sampler takes for the denoiser's error, see `diffusion.imported.variance`."""
    statements: tuple[str, ...]
    """What was found, a sentence each, for the prior's card."""
    autoencoder: AutoencoderKL | None = None
    """What made the latent, where x is one."""
