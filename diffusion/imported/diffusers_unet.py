"""diffusers' `UNet2DModel` with any arguments, as a network that is given its own time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffusion.network import UNet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

__all__ = ["DiffusersUNet", "diffusers_unet", "refuse_conditional"]


class DiffusersUNet(UNet):
    """Any `UNet2DModel` of diffusers that is not conditional, given its own time; it can be given eyes for y."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config`: the arguments of `UNet2DModel`.

        Raises:
            ValueError: the network needs something beside the state and its time.
        """
        nn.Module.__init__(self)
        from diffusers.models.unets.unet_2d import UNet2DModel  # diffusers takes seconds to import

        refuse_conditional(config)
        self.network = UNet2DModel(**config)

    @classmethod
    def of(cls, network: UNet2DModel) -> DiffusersUNet:
        """Around a `network` that exists."""
        refuse_conditional(network.config)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.network = network
        return made

    def forward(self, value: Tensor, time: Tensor, measurement: Tensor | None = None) -> Tensor:
        """[N, C, H, W], [N] -> [N, C, H, W], with y [N, *Y] where it is seen."""
        return self.at_time(value, time, measurement)


def refuse_conditional(config: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a `UNet2DModel` of `config` is not a function of a state and its time alone."""
    for name in ("class_embed_type", "num_class_embeds"):
        if config.get(name) is not None:
            raise ValueError(
                f"a prior p(x) must not be conditional, but the U-Net is on class labels: {name} = {config[name]!r}"
            )
    if config.get("time_embedding_type", "positional") == "learned":
        raise ValueError(
            "the U-Net has a table of its time steps (time_embedding_type 'learned'), so nothing between them; "
            "expected 'positional' or 'fourier'"
        )
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] != channels[1]:
        raise ValueError(
            f"the U-Net must give as many channels as it is given, got in_channels {channels[0]} and out_channels "
            f"{channels[1]}: more channels in are a conditional model, twice as many out one that learned its variances"
        )


def diffusers_unet(event_shape: tuple[int, ...], *, config: Mapping[str, Any]) -> DiffusersUNet:
    """The network for x of `event_shape` with random weights; see `DiffusersUNet`."""
    channels = config.get("in_channels", 3)
    if len(event_shape) != 3 or event_shape[0] != channels:
        raise ValueError(f"a U-Net of {channels} channels needs x of shape [{channels}, H, W], got {event_shape}")
    return DiffusersUNet(config)
