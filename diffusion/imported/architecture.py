"""Networks by name and arguments, as files state them: what weights are put into.

`ARCHITECTURES` is a dictionary, to which a plug-in can add: name -> function of the arguments. A network maps
(state [N, *D], time [N]) to [N, *D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffusion.network import MLP, UNet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

__all__ = ["ARCHITECTURES", "DiffusersUNet", "make_architecture"]


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


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "UNet2DModel": lambda **arguments: DiffusersUNet(arguments),
    "unet": UNet,
    "mlp": MLP,
}


def make_architecture(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network called `name`, with random weights.

    Raises:
        ValueError: there is none of this name, or it does not take these arguments.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; expected one of {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture {name!r} does not take these arguments: {error}") from None
