"""Priors of the radio sky: kernel densities, whose denoisers and posteriors given visibilities are exact.

x [1, H, W] is brightness in units of 8 F / (H W) Jy per pixel for a source of F Jy: about one where the source is, if
it fills an eighth of the field. A density is a mixture of Gaussians around templates with one covariance,

    C_ij = h^2 [0.95 exp(-|i - j|^2 / 2 a^2) + 0.05 delta_ij],    a = 1.5 pixels,

so that x departs from each template smoothly. Gaussians do not know that brightness is positive.

- `shapes`: 600 SIMULATED sources, 120 of each kind: discs, Gaussians, rings, crescents and doubles, of random size,
  width, axis ratio, orientation and place. They can make a ring, and do not assume one.
- `galaxies`: the first 1,000 galaxies of the training part of the data set of that name, of one flux. Radio sources are
  no galaxies: this is the misspecified prior of the literature on disks (see docs/instruments.md).
- `field`: one Gaussian of mean zero with a round envelope of width 0.2 fields and a correlation length of 1.5 pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.data import load_dataset

__all__ = ["FILLED", "KINDS", "SKIES", "sky_prior"]

KINDS = ("disc", "gaussian", "ring", "crescent", "double")
EACH = 120
GALAXIES = 1_000
BANDWIDTHS = {"shapes": 0.2, "galaxies": 0.15}  # under which held-out 16 x 16 images are likeliest, to 0.05
SKIES = (*BANDWIDTHS, "field")
FILLED = 1 / 8
DRAWS = 128  # give each level's denoising error to 2 % or so, in a second
CORRELATION, NUGGET, ENVELOPE = 1.5, 0.05, 0.2


def sky_prior(name: str, size: int, num_steps: int, schedule: str) -> tuple[Prior, MixtureDenoiser]:
    """The prior called `name` of images of `size` x `size` pixels, and its density.

    Raises:
        MissingDataError: the galaxies are not on this machine.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    if name == "field":
        place = _places(size) / size
        envelope = (-0.5 * place.square().sum(1) / ENVELOPE**2).exp()
        means, covariance = torch.zeros(1, size * size), envelope[:, None] * _correlation(size) * envelope
        covariance = covariance + 1e-3 * torch.eye(size * size, dtype=torch.float64)
    elif name in BANDWIDTHS:
        means = shapes(size)[0] if name == "shapes" else galaxies(size)
        covariance = BANDWIDTHS[name] ** 2 * _correlation(size)
    else:
        raise ValueError(f"prior must be one of {', '.join(SKIES)}, got {name!r}")
    shape = (1, size, size)
    density = MixtureDenoiser(means.double(), covariance, event_shape=shape)
    variance = means.double().var(0, correction=0).mean() + covariance.diagonal().mean()
    data_std = float(variance.sqrt())
    levels = make_schedule(schedule, num_steps, scale=data_std)
    error = density.denoising_variance(levels.alpha[:-1], levels.sigma[:-1], DRAWS)
    return Prior(density, levels, shape, error, data_std), density


def galaxies(size: int, first: int = 0, count: int = GALAXIES, part: str = "train") -> Tensor:
    """[count, size^2] float32 galaxies in units of x, averaged from 32 x 32 pixels."""
    if 32 % size:
        raise ValueError(f"galaxies are of 32 x 32 pixels: size must divide that, got {size}")
    images = getattr(load_dataset("galaxies"), part)[first : first + count]
    dark = torch.nn.functional.avg_pool2d((images + 1) / 2, 32 // size).flatten(1)
    bright = dark - dark.amin(1, keepdim=True)
    return bright * (FILLED / bright.mean(1, keepdim=True))


def shapes(size: int, each: int = EACH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[5 each, size^2] float32 SIMULATED sources in units of x, and their kinds [5 each], numbers of `KINDS`."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(len(KINDS)).repeat_interleave(each)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(kind), 1, generator=generator)

    place = _places(size).float() / size  # in fields
    centre = torch.cat([uniform(-0.04, 0.04), uniform(-0.04, 0.04)], 1)
    angle, ratio = uniform(0, math.pi), uniform(0.6, 1.0)
    radius, width = uniform(0.08, 0.28), uniform(0.6, 1.6) / 16  # one pixel of the smallest images is the thinnest
    bright, lean, share = uniform(0, 2 * math.pi), uniform(0.3, 1.0), uniform(0.2, 1.0)
    flux = (0.2 * torch.randn(len(kind), 1, generator=generator)).exp()
    down, right = ((place[:, axis] - centre[:, [axis]]) for axis in (0, 1))
    along = right * angle.cos() + down * angle.sin()
    across = (down * angle.cos() - right * angle.sin()) / ratio
    distance = (along.square() + across.square()).sqrt()
    ring = (-0.5 * ((distance - radius) / width).square()).exp()
    spots = [(-0.5 * ((along + sign * radius).square() + across.square()) / width**2).exp() for sign in (-1, 1)]
    images = torch.stack(
        [
            torch.sigmoid((radius - distance) / (0.4 * width)),
            (-0.5 * (distance / (0.6 * radius)).square()).exp(),
            ring,
            ring * (1 + lean * torch.cos(torch.atan2(down, right) - bright)),
            spots[0] + share * spots[1],
        ]
    )[kind, torch.arange(len(kind))]
    return images * (flux * FILLED / images.mean(1, keepdim=True)), kind


def _places(size: int) -> Tensor:
    """[size^2, 2] rows and columns of the pixels from the phase centre."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.cartesian_prod(line, line)


def _correlation(size: int) -> Tensor:
    """[size^2, size^2] float64: see the module."""
    square = torch.cdist(_places(size), _places(size)).square()
    smooth = (-0.5 * square / CORRELATION**2).exp()
    return (1 - NUGGET) * smooth + NUGGET * torch.eye(size * size, dtype=torch.float64)
