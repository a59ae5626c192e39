"""Denoisers and networks by kind: what a stored prior needs to build its denoiser again before it loads the weights.

A description is a mapping that JSON can hold: `kind`, and the arguments of the kind's builder.

    {"kind": "network", "network": {"kind": "mlp", "hidden": 256}}

A kind is a function (event_shape, data_std, **arguments) -> module in a file of its own, and a line here. Kinds of your
own are added to the dictionaries by a module that is imported first.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser import MixtureDenoiser, NetworkDenoiser
from diffusion.imported.diffusers_network import discrete_denoiser
from diffusion.imported.diffusers_unet import diffusers_unet
from diffusion.imported.edm import edm_denoiser
from diffusion.imported.flow import flow_denoiser
from diffusion.imported.score_model import score_model_denoiser
from diffusion.network import MLP, Plane, Ring, UNet

__all__ = ["DENOISERS", "NETWORKS", "EventMLP", "make_denoiser", "make_network", "nearest", "network_factory"]


class EventMLP(MLP):
    """An MLP from x of any shape to one of the same shape."""

    def forward(self, value: Tensor, level: Tensor, measurement: Tensor | None = None) -> Tensor:
        """[N, *D], [N] -> [N, *D], with y [N, *Y] where it is seen."""
        return super().forward(value.flatten(1), level, measurement).reshape(value.shape)


def _mlp(event_shape: tuple[int, ...], *, hidden: int = 256, depth: int = 3, embedding: int = 64) -> nn.Module:
    dim = torch.Size(event_shape).numel()
    return EventMLP(dim, dim, hidden, depth, embedding)


def _unet(
    event_shape: tuple[int, ...],
    *,
    channels: tuple[int, ...] = (32, 64, 64),
    layers_per_block: int = 1,
    groups: int = 8,
    patch: int = 1,
) -> nn.Module:
    if patch < 1 or not channels or any(width % groups for width in channels):
        raise ValueError(
            f"a U-Net needs patch of at least 1, and channels divisible by groups = {groups}, got {patch} and "
            f"{list(channels)}"
        )
    parts = patch * 2 ** (len(channels) - 1)
    if len(event_shape) != 3 or any(size % parts for size in event_shape[1:]):
        raise ValueError(
            f"a U-Net of {len(channels)} levels needs x of shape [C, H, W] with H and W divisible by {parts}, "
            f"got {tuple(event_shape)}"
        )
    return UNet(event_shape[0], event_shape[0], tuple(channels), layers_per_block, groups, patch)


def _ring(event_shape: tuple[int, ...], *, width: int = 48, depth: int = 4, kernel: int = 5) -> nn.Module:
    if len(event_shape) != 1 or event_shape[0] < kernel:
        raise ValueError(f"a ring network needs x of shape [D] with D of at least {kernel}, got {tuple(event_shape)}")
    return Ring(width, depth, kernel)


def _plane(event_shape: tuple[int, ...], *, width: int = 16, depth: int = 2) -> nn.Module:
    if len(event_shape) != 3:
        raise ValueError(f"a plane network needs x of shape [C, H, W], got {tuple(event_shape)}")
    return Plane(event_shape[0], width, depth)


def _network(
    event_shape: tuple[int, ...], data_std: float, *, network: Mapping[str, Any], centred: bool = False
) -> nn.Module:
    """A `NetworkDenoiser`; `centred` has the mean of x among its weights."""
    return NetworkDenoiser(make_network(network, event_shape), data_std, torch.zeros(event_shape) if centred else None)


def _mixture(event_shape: tuple[int, ...], data_std: float, *, components: int, variance: float) -> nn.Module:
    """A `MixtureDenoiser` of so many `components` of one `variance`, whose means are its weights: a kernel density."""
    means = torch.zeros(components, torch.Size(event_shape).numel())
    return MixtureDenoiser(means, variance, event_shape=event_shape)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "ring": _ring,
    "plane": _plane,
    "unet": _unet,
    "diffusers-unet": diffusers_unet,
}
"""Networks F of a `NetworkDenoiser` by kind: (event_shape, **arguments) -> module."""

DENOISERS: dict[str, Callable[..., nn.Module]] = {
    "network": _network,
    "mixture": _mixture,
    "diffusers": discrete_denoiser,
    "edm": edm_denoiser,
    "flow": flow_denoiser,
    "score-models": score_model_denoiser,
}
"""Denoisers by kind: (event_shape, data_std, **arguments) -> module (`diffusion.denoiser.Denoiser`)."""


def network_factory(kind: str) -> Callable[..., nn.Module]:
    """The builder of networks of `kind`.

    Raises:
        ValueError: no such kind; the message names the nearest.
    """
    if kind not in NETWORKS:
        raise ValueError(f"unknown kind of network {kind!r}; {nearest(kind, NETWORKS)}")
    return NETWORKS[kind]


def make_network(description: Mapping[str, Any], event_shape: tuple[int, ...]) -> nn.Module:
    """The network of `description`, with random weights.

    Raises:
        ValueError: unknown kind or argument (the message names the nearest), or arguments that do not fit.
    """
    return _made("network", NETWORKS, description, tuple(event_shape))


def make_denoiser(description: Mapping[str, Any], event_shape: tuple[int, ...], data_std: float) -> nn.Module:
    """The denoiser of `description`, with random weights.

    Raises:
        ValueError: unknown kind or argument (the message names the nearest), or arguments that do not fit.
    """
    return _made("denoiser", DENOISERS, description, tuple(event_shape), data_std)


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean X?' or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def _made(
    what: str, kinds: Mapping[str, Callable[..., nn.Module]], description: Mapping[str, Any], *given: object
) -> nn.Module:
    kind = description.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"the description of a {what} needs a kind, got {dict(description)!r}")
    if kind not in kinds:
        raise ValueError(
            f"unknown kind of {what} {kind!r} (one of your own has to be imported first); {nearest(kind, kinds)}"
        )
    arguments = {key: value for key, value in description.items() if key != "kind"}
    known = [name for name, entry in inspect.signature(kinds[kind]).parameters.items() if entry.kind in _NAMED]
    for key in arguments:
        if key not in known[len(given) :]:
            raise ValueError(f"unknown argument {key!r} of {what} {kind!r}; {nearest(key, known[len(given) :])}")
    try:
        return kinds[kind](*given, **arguments)
    except TypeError as error:  # a missing argument, or one of the wrong type
        raise ValueError(f"cannot make {what} {kind!r}: {error}") from error


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
