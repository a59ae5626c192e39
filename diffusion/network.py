"""Networks for denoisers and controls: an MLP for vectors, diffusers' U-Net for images, one for single elements.

They map (input [N, C, *D] or [N, D], level [N]) to an output of the event shape, the level being a log-SNR or a step
index scaled to a similar range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Elementwise", "LevelEmbedding", "UNet"]


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

    def forward(self, value: Tensor, level: Tensor) -> Tensor:
        """[N, inputs], [N] -> [N, outputs]."""
        hidden = self.body(torch.cat([value, self.embedding(level).to(value)], dim=1))
        output: Tensor = self.head(hidden)
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


class UNet(nn.Module):
    """diffusers' `UNet2DModel` on images [N, C, H, W]; H and W must be divisible by 2^(levels - 1)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        groups: int = 8,
    ) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel  # diffusers takes seconds to import

        self.network = UNet2DModel(
            in_channels=in_channels,
            out_channels=out_channels,
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

    def forward(self, value: Tensor, level: Tensor) -> Tensor:
        """[N, C, H, W], [N] -> [N, out, H, W]; the level is stretched to the range of published time steps."""
        output: Tensor = self.network(value, 50.0 * (level + 10.0)).sample
        return output
