r"""The non-linear blur of the benchmarks: the network of Tran et al. 2021 (arXiv 2104.00317), on weights of yours.

    y = clip(2 F((x + 1) / 2, k) - 1, -1, 1),    k = 1.2 noise, drawn once,

for images [3, H, W] in [-1, 1], H and W divisible by 128: F(image, k) adds to an image in [0, 1] the blur that the code
k [8 f, H / 128, W / 128] stands for, f being the width of the network. It was trained on blurred videos (GoPro), and is
the operator of the non-linear deblurring of Chung et al. 2023 (DPS, arXiv 2209.14687), who draw another k at each call;
here it is one, so that there is one likelihood.

The weights do not ship: `GOPRO_wVAE.pth` of github.com/VinAIResearch/blur-kernel-space-exploring, whose part that finds
the code of a given blur is not used. They are read as safetensors. `NonlinearBlurSurrogate` needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.imported.source import fill, read_weights, refuse_pickle

__all__ = ["BlurNetwork", "EncodedBlur"]

PUBLISHED = "GOPRO_wVAE.pth of github.com/VinAIResearch/blur-kernel-space-exploring, made safetensors"
CODE_STD = 1.2
UNUSED = "kernel_extractor."
LEVELS = 5  # of the network that adds the blur
DIVISOR = 4 * 2**LEVELS
LAST = 64  # channels of the last layers, whatever the width


class EncodedBlur(nn.Module):
    """Images [3, H, W] in [-1, 1] -> [3, H, W] in [-1, 1]; differentiable where it does not clip."""

    code: Tensor
    """[1, 8 f, H / 128, W / 128] k."""

    def __init__(self, event_shape: tuple[int, ...], weights: Path, seed: int = 0) -> None:
        """`weights` is the file of the network's; the code is drawn with `seed`.

        Raises:
            ValueError: images of another shape, or a file that is none, pickled or of another network.
        """
        super().__init__()
        if len(event_shape) != 3 or event_shape[0] != 3 or any(size % DIVISOR for size in event_shape[1:]):
            raise ValueError(
                f"the network of non-linear blur takes images [3, H, W] with H and W divisible by {DIVISOR}, got "
                f"{list(event_shape)}"
            )
        refuse_pickle(weights)
        if not weights.is_file():
            raise ValueError(f"there is no file {weights}; the weights of non-linear blur are {PUBLISHED}")
        given = {name: value for name, value in read_weights(weights).items() if not name.startswith(UNUSED)}
        self.measurement_shape = tuple(event_shape)
        self.network = _network_of(given, weights)
        generator = torch.Generator().manual_seed(seed)
        sizes = [size // DIVISOR for size in event_shape[1:]]
        code = torch.randn(1, 8 * self.network.width, *sizes, generator=generator)
        self.register_buffer("code", CODE_STD * code)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`; in the precision of the weights."""
        image = (value.to(self.code) + 1) / 2
        return (2 * self.network(image, self.code) - 1).clamp(-1, 1).to(value)


class BlurNetwork(nn.Module):
    """F: features of an image at a quarter of its size, the blur added to them, the change that makes of the image."""

    def __init__(self, width: int, before: int, after: int) -> None:
        """`width` f, and the residual blocks `before` and `after` the blur is added; names are those of the weights."""
        super().__init__()
        self.width = width
        leaky = nn.LeakyReLU(0.1)
        halved = [layer for _ in range(2) for layer in (nn.Conv2d(width, width, 3, 2, 1), leaky)]
        blocks = [_Residual(width) for _ in range(before)]
        self.feature_extractor = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), leaky, *halved, *blocks)
        level = _Level(8 * width, 8 * width, None)
        for outer in (4, 2, 1):
            level = _Level(outer * width, 2 * outer * width, level)
        self.adapter = nn.ModuleDict({"model": _Level(width, width, level, outermost=True)})
        self.recon_trunk = nn.Sequential(
            *[_Residual(width) for _ in range(after)],
            nn.Conv2d(width, 4 * width, 3, 1, 1),
            nn.PixelShuffle(2),
            leaky,
            nn.Conv2d(width, 4 * LAST, 3, 1, 1),
            nn.PixelShuffle(2),
            leaky,
            nn.Conv2d(LAST, LAST, 3, 1, 1),
            leaky,
            nn.Conv2d(LAST, 3, 3, 1, 1),
        )

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """[N, 3, H, W] of `image` [N, 3, H, W] in [0, 1] and `code` [1, 8 f, H / 128, W / 128]."""
        blurred: Tensor = self.adapter["model"](self.feature_extractor(image), code)
        changed: Tensor = image + self.recon_trunk(blurred)
        return changed


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, value: Tensor) -> Tensor:
        changed: Tensor = value + self.conv2(self.conv1(value).relu())
        return changed


class _Level(nn.Module):
    """Half the size, what is below (at the bottom the code beside it), and up again; what came in goes beside."""

    def __init__(self, outer: int, inner: int, below: nn.Module | None, *, outermost: bool = False) -> None:
        super().__init__()
        self.outermost, self.submodule = outermost, below
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(2 * inner, outer, 4, 2, 1, bias=outermost)
        self.down = nn.Sequential(down) if outermost else nn.Sequential(nn.Identity(), down)
        self.up = nn.Sequential(nn.ReLU(), up, nn.Tanh() if outermost else nn.Identity())

    def forward(self, value: Tensor, code: Tensor) -> Tensor:
        if not self.outermost:  # in place where it was trained, so that what goes beside has it too
            value = nn.functional.leaky_relu(value, 0.2)
        half = self.down(value)
        if self.submodule is None:
            inner = torch.cat([half, code.expand(len(half), *code.shape[1:])], 1)
        else:
            inner = self.submodule(half, code)
        changed: Tensor = self.up(inner)
        return changed if self.outermost else torch.cat([changed, value], 1)


def _network_of(weights: Mapping[str, Tensor], path: Path) -> BlurNetwork:
    """The network of these weights, whose width and numbers of blocks are theirs."""
    first = weights.get("feature_extractor.0.weight")
    if first is None or first.ndim != 4:
        raise ValueError(f"{path} has no weights of non-linear blur, expected {PUBLISHED}; got {len(weights)} tensors")
    before, after = (
        sum(name.startswith(part) and name.endswith("conv1.weight") for name in weights)
        for part in ("feature_extractor.", "recon_trunk.")
    )
    network = BlurNetwork(len(first), before, after)
    fill(network, weights, str(path))
    return network
