"""A small decoder of images: which image does the latent x stand for?

At rest it is a folder with decoder.json (`envs.stored_network`). Others than those that ship are trained, with the
prior of their latents, by `learner.autoencoder_training`. `diffusion.imported.latent` has those of published priors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from envs.stored_network import load_network, network_names, save_network

__all__ = ["Decoder", "decoder_names", "load_decoder", "save_decoder"]

KIND = "decoder"


class Decoder(nn.Module):
    """x [N, d], a latent, to an image [N, C, H, W], through one hidden layer; a forward operator."""

    def __init__(self, latent: int, image_shape: tuple[int, ...], hidden: int = 128, data: str = "") -> None:
        """`latent` is d, `image_shape` (C, H, W); `data` names the data set that it is of."""
        super().__init__()
        self.event_shape, self.measurement_shape = (latent,), tuple(image_shape)
        self.hidden, self.data = hidden, data
        pixels = torch.Size(image_shape).numel()
        self.layers = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels))

    def forward(self, value: Tensor) -> Tensor:
        """See `Decoder`; in the precision of the weights."""
        image: Tensor = self.layers(value.to(next(self.parameters())))
        return image.to(value).reshape(len(value), *self.measurement_shape)


def decoder_names() -> tuple[str, ...]:
    """Names of the decoders that ship, sorted."""
    return network_names(KIND)


def save_decoder(folder: Path, decoder: Decoder, card: str) -> Path:
    """Writes a decoder to `folder`; `card` is the text of its README."""
    description = {
        "latent": decoder.event_shape[0],
        "image_shape": list(decoder.measurement_shape),
        "hidden": decoder.hidden,
        "data": decoder.data,
    }
    return save_network(KIND, folder, decoder, description, card)


def load_decoder(name_or_folder: str | Path) -> Decoder:
    """A stored decoder, frozen.

    Raises:
        ValueError: there is none of that name or in that folder, or it cannot be read.
    """
    return load_network(
        KIND,
        name_or_folder,
        lambda tree: Decoder(int(tree["latent"]), tuple(tree["image_shape"]), int(tree["hidden"]), str(tree["data"])),
    )
