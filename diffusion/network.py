"""Networks for denoisers and controls: an MLP for vectors, convolutions for the sites of a ring, diffusers' U-Net for
images, convolutions for images that look alike everywhere, and one for single elements.

They map (input [N, C, *D] or [N, D], level [N]) to an output of the event shape, the level being a log-SNR or a step
index scaled to a similar range. The MLP and the U-Net can be given eyes for y later on: `SeesMeasurement`.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["MLP", "CheckpointsActivations", "Elementwise", "LevelEmbedding", "Plane", "Ring", "SeesMeasurement", "UNet"]


@runtime_checkable
class SeesMeasurement(Protocol):
    """A network that takes y as a third argument after `add_measurement`."""

    def add_measurement(self, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """Adds inputs for y of `shape`, with weights of zero: the output stays what it was until they are trained."""
        ...


@runtime_checkable
class CheckpointsActivations(Protocol):
    """A network that can compute parts of its graph again instead of keeping them (Chen et al. 2016, 1604.06174)."""

    def checkpoint_activations(self) -> None:
        """From now on keeps less for the backward pass; values and gradients stay what they are."""
        ...


class LevelEmbedding(nn.Module):
    """Sines and cosines of a scalar level, [N] -> [N, dim]."""

    frequencies: Tensor

    def __init__(self, dim: int, max_frequency: float = 16.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the embedding dimension must be even, got {dim}")
        self.register_buffer("frequencies", torch.logspace(-1, math.log10(max_frequency), dim // 2), persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        """[N] -> [N, dim]."""
        angle = level.to(self.frequencies)[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class MLP(nn.Module):
    """A multilayer perceptron on vectors [N, inputs] with a level embedding added to the input."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 256, depth: int = 3, embedding: int = 64) -> None:
        super().__init__()
        if depth < 1 or hidden < 1:
            raise ValueError(f"an MLP needs depth and hidden of at least 1, got {depth} and {hidden}")
        self.embedding = LevelEmbedding(embedding)
        layers: list[nn.Module] = [nn.Linear(inputs + embedding, hidden), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(hidden, hidden), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden, outputs)
        self.measurement: nn.Linear | None = None

    def add_measurement(self, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """See `SeesMeasurement`: more inputs of the first layer."""
        first = self.body[0]
        assert isinstance(first, nn.Linear)
        self.measurement = _zero(nn.Linear(torch.Size(shape).numel(), first.out_features, bias=False))

    def forward(self, value: Tensor, level: Tensor, measurement: Tensor | None = None) -> Tensor:
        """[N, inputs], [N] -> [N, outputs], with y [N, *Y] where it is seen."""
        hidden = self.body[0](torch.cat([value, self.embedding(level).to(value)], dim=1))
        if self.measurement is not None and measurement is not None:
            hidden = hidden + self.measurement(measurement.to(value).flatten(1))
        output: Tensor = self.head(self.body[1:](hidden))
        return output


class Elementwise(nn.Module):
    """One small MLP that all elements go through, each by itself."""

    def __init__(self, features: int, hidden: int = 32, embedding: int = 32) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"an elementwise network needs hidden of at least 1, got {hidden}")
        self.embedding = LevelEmbedding(embedding)
        self.level = nn.Linear(embedding, hidden)
        self.inputs = nn.Linear(features, hidden)
        self.body = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, value: Tensor, level: Tensor) -> Tensor:
        """[N, *D, features], [N] -> [N, *D]."""
        shift = self.level(self.embedding(level).to(value))
        shift = shift.reshape(len(shift), *(1,) * (value.ndim - 2), -1)
        hidden = nn.functional.silu(self.inputs(value) + shift)
        output: Tensor = self.head(nn.functional.silu(self.body(hidden)))
        return output[..., 0]


class Ring(nn.Module):
    """Residual circular convolutions on vectors [N, D] whose elements are sites of a ring, where all are alike.

    A rotation of the input rotates the output: a network of a few weights then learns at every site at once.
    """

    def __init__(self, width: int = 48, depth: int = 4, kernel: int = 5, embedding: int = 64) -> None:
        super().__init__()
        if width < 1 or depth < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"a ring network needs width and depth of at least 1 and an odd kernel, got {width}, {depth}, {kernel}"
            )
        self.embedding = LevelEmbedding(embedding)
        self.first = _circular(1, width, kernel)
        self.inner = nn.ModuleList(_circular(width, width, kernel) for _ in range(depth))
        self.outer = nn.ModuleList(_circular(width, width, kernel) for _ in range(depth))
        self.levels = nn.ModuleList(nn.Linear(embedding, 2 * width) for _ in range(depth))
        self.head = nn.Conv1d(width, 1, 1)

    def forward(self, value: Tensor, level: Tensor) -> Tensor:
        """[N, D], [N] -> [N, D]."""
        embedded = self.embedding(level).to(value)
        hidden = self.first(value[:, None])
        for inner, outer, scales in zip(self.inner, self.outer, self.levels, strict=True):
            scale, shift = scales(embedded)[:, :, None].chunk(2, dim=1)
            branch = inner(nn.functional.silu(hidden)) * (1 + scale) + shift
            hidden = hidden + outer(nn.functional.silu(branch))
        output: Tensor = self.head(nn.functional.silu(hidden))
        return output[:, 0]


def _circular(inputs: int, outputs: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="circular")


class Plane(nn.Module):
    """Residual convolutions on images [N, C, H, W] whose pixels are all alike, as those of noise are.

    A pixel of the output sees 3 + 2 `depth` pixels to each side, zeros beyond the edges. The level scales the features
    of the last layer, none of whose inputs need be bent: filters that depend on it, of which a few are a Wiener filter.
    """

    def __init__(self, channels: int, width: int = 16, depth: int = 2, embedding: int = 64) -> None:
        super().__init__()
        if width < 1 or depth < 0:
            raise ValueError(f"a plane network needs width of at least 1 and depth of at least 0, got {width}, {depth}")
        self.embedding = LevelEmbedding(embedding)
        self.first = nn.Conv2d(channels, width, 5, padding=2)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.levels = nn.ModuleList(nn.Linear(embedding, 2 * width) for _ in range(depth + 1))
        self.head = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, value: Tensor, level: Tensor) -> Tensor:
        """[N, C, H, W], [N] -> [N, C, H, W]."""
        embedded = self.embedding(level).to(value)
        parts = [layer(embedded)[:, :, None, None].chunk(2, dim=1) for layer in self.levels]
        hidden = self.first(value)
        for inner, outer, (scale, shift) in zip(self.inner, self.outer, parts[:-1], strict=True):
            branch = inner(nn.functional.silu(hidden)) * (1 + scale) + shift
            hidden = hidden + outer(nn.functional.silu(branch))
        scale, shift = parts[-1]
        output: Tensor = self.head(hidden * (1 + scale) + shift)
        return output


class UNet(nn.Module):
    """diffusers' `UNet2DModel` on images [N, C, H, W], H and W divisible by `patch` 2^(levels - 1).

    With `patch` p it sees p x p pixels as one of p^2 C channels, at a p^2-th of the cost (Luhman and Luhman 2022, arXiv
    2207.04316).
    """

    patch = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        groups: int = 8,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.patch = patch
        from diffusers.models.unets.unet_2d import UNet2DModel  # diffusers takes seconds to import

        self.network = UNet2DModel(
            in_channels=in_channels * patch**2,
            out_channels=out_channels * patch**2,
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=groups,
            add_attention=True,
        )

    @property
    def head(self) -> nn.Conv2d:
        """The last layer. Not an attribute, or its weights would be twice in `state_dict()`."""
        head: nn.Conv2d = self.network.conv_out
        return head

    def add_measurement(self, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """See `SeesMeasurement`: channels for a y of the image's size, else an embedding added to that of the level."""
        if len(shape) == 3 and tuple(shape[1:]) == tuple(event_shape[1:]):
            self.network.conv_in = _WithChannels(self.network.conv_in, shape[0] * self.patch**2)
        else:
            width = self.network.time_embedding.linear_2.out_features
            self.network.class_embedding = _zero(nn.Linear(torch.Size(shape).numel(), width, bias=False))

    def checkpoint_activations(self) -> None:
        """See `CheckpointsActivations`."""
        self.network.enable_gradient_checkpointing()

    def forward(self, value: Tensor, level: Tensor, measurement: Tensor | None = None) -> Tensor:
        """[N, C, H, W], [N] -> [N, out, H, W], with y [N, *Y] where it is seen.

        The level is stretched to the range of published time steps.
        """
        return self.at_time(value, 50.0 * (level + 10.0), measurement)

    def at_time(self, value: Tensor, time: Tensor, measurement: Tensor | None = None) -> Tensor:
        """The same, by the time that diffusers' model is given."""
        embedded = None
        value = nn.functional.pixel_unshuffle(value, self.patch)
        if measurement is not None and isinstance(self.network.conv_in, _WithChannels):
            seen = nn.functional.pixel_unshuffle(measurement.to(value), self.patch)
            value = torch.cat([value, seen], dim=1)
        elif measurement is not None and self.network.class_embedding is not None:
            embedded = measurement.to(value).flatten(1)
        output: Tensor = self.network(value, time, class_labels=embedded).sample
        return nn.functional.pixel_shuffle(output, self.patch)


class _WithChannels(nn.Module):
    """A convolution, and a second one without bias for channels that were added after those of the first."""

    def __init__(self, first: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.first = first
        self.channels = first.in_channels
        self.measurement = _zero(
            nn.Conv2d(
                channels,
                first.out_channels,
                first.kernel_size,  # type: ignore[arg-type]
                stride=first.stride,  # type: ignore[arg-type]
                padding=first.padding,  # type: ignore[arg-type]
                bias=False,
            )
        )

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = self.first(value[:, : self.channels]) + self.measurement(value[:, self.channels :])
        return output


T = TypeVar("T", nn.Linear, nn.Conv2d)


def _zero(layer: T) -> T:
    """`layer` with all weights zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
