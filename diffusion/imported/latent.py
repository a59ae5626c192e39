r"""The decoder of a latent prior, as a part of the forward operator.

Latent diffusion models (Rombach et al. 2022, arXiv 2112.10752) are priors of a latent z; an image is

    D(z / scaling_factor + shift_factor),

D being the decoder of the autoencoder. x is the latent here, and the forward operator of an instrument that sees
images is A(x) = B(decoder(x)) with B that of the instrument: `envs.operators.compose(B, decoder)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from diffusion.imported.source import read_json, read_model
from diffusion.stored_prior import read_prior

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

__all__ = ["FOLDER", "LatentDecoder", "load_decoder", "read_autoencoder"]

FOLDER = "vae"
"""Where a stored prior keeps the autoencoder."""


class LatentDecoder(nn.Module):
    """x [N, C, H, W], a latent, to the image [N, C', H', W'] that it stands for, of values in about [-1, 1]."""

    def __init__(self, autoencoder: AutoencoderKL, event_shape: tuple[int, ...]) -> None:
        """Keeps the decoding half of `autoencoder`, frozen; `event_shape` [C, H, W] is that of the latent."""
        super().__init__()
        config = autoencoder.config
        times = 2 ** (len(config.block_out_channels) - 1)
        self.event_shape = tuple(event_shape)
        self.measurement_shape = (int(config.out_channels), *(times * size for size in event_shape[1:]))
        """Shape of the image."""
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = float(config.shift_factor or 0.0)
        self.decoder = autoencoder.decoder
        self.first: nn.Module = autoencoder.post_quant_conv or nn.Identity()
        self.requires_grad_(False).eval()

    def forward(self, latent: Tensor) -> Tensor:
        """See `LatentDecoder`; gradients go through it to the latent."""
        image: Tensor = self.decoder(self.first(latent / self.scaling_factor + self.shift_factor))
        return image


def read_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in a folder of diffusers.

    Raises:
        ValueError: it is another model, has no safetensors, or weights that are not its own.
    """
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name != "AutoencoderKL":
        raise ValueError(
            f"the decoder of a latent prior must be an AutoencoderKL, got {name} in {folder}"
            + ("; its codebook has no gradient" if name == "VQModel" else "")
        )
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise ValueError(f"{folder} normalises every channel of the latent ({key}), which is not read here")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # diffusers takes seconds to import

    autoencoder: AutoencoderKL = read_model(AutoencoderKL, folder)
    return autoencoder


def load_decoder(folder: str | Path) -> LatentDecoder:
    """The decoder of the latent prior that is stored in `folder`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = Path(folder) / FOLDER
    if not path.is_dir():
        raise ValueError(f"{folder} has no {FOLDER} folder: its prior is not one of a latent")
    return LatentDecoder(read_autoencoder(path), read_prior(Path(folder)).event_shape)
