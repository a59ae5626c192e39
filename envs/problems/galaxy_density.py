r"""Densities of galaxies: what astronomical problems hold for likely before they are measured.

x is the brightness of each pixel, in units of the brightest that a cut-out can hold (1), and not negative but for the
width of the kernels. A kernel density of N galaxies g_i,

    p(x) = 1/N sum_i N(x; g_i, h^2 S + r^2 I),    S the covariance of the g_i,

is a Gaussian mixture with one covariance, so its score is exact, and so is the posterior of whatever is linear and
Gaussian. By default h = 0, and a galaxy is one of those known, and noise. With `-smooth` behind the name kernels are as
wide as galaxies vary, pixel by pixel and together: held-out real ones of 16 x 16 pixels then have 577 nats on average,
against 468. h and r are those under which held-out galaxies are likeliest, of a few.

    galaxies    real ones: cut-outs of the Sloan Digital Sky Survey, averaged to fewer pixels
    sersic      simulated ones: ellipses of Sersic's profile; they need no file
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.data import load_dataset

__all__ = ["GalaxyDensity", "galaxy_density", "sersic_galaxies"]

KERNELS = {
    "galaxies": (0.0, 0.03),
    "galaxies-smooth": (0.4, 0.02),
    "sersic": (0.0, 0.02),
    "sersic-smooth": (0.4, 0.01),
}
HELD_OUT = 64  # of the simulated ones
DRAWS = 128  # that the error of the estimate is measured with: of 256 pixels that is 1 %


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GalaxyDensity:
    """A density of galaxies, and others that it has not seen."""

    density: MixtureDenoiser
    """Of images [1, n, n]."""
    data_std: float
    """Standard deviation of x per pixel."""
    held_out: Tensor
    """[M, 1, n, n] float32."""

    def prior(self, num_steps: int, schedule: str) -> Prior:
        """The density as a diffusion model."""
        levels = make_schedule(schedule, num_steps, scale=self.data_std)
        variance = self.density.denoising_variance(levels.alpha[:-1], levels.sigma[:-1], DRAWS)
        return Prior(self.density, levels, self.density.event_shape, variance, self.data_std)

    def truth(self, truth: str, image: int, generator: torch.Generator) -> Tensor:
        """[1, 1, n, n] what is measured: number `image` of those `held-out`, or a draw of the `prior`."""
        if truth == "prior":
            return self.density.sample(1, generator).float()
        if truth != "held-out":
            raise ValueError(f"truth must be prior or held-out, got {truth!r}")
        if not 0 <= image < len(self.held_out):
            raise ValueError(f"image must be one of the held-out galaxies, 0..{len(self.held_out) - 1}, got {image}")
        return self.held_out[image : image + 1]


def galaxy_density(name: str, size: int, count: int) -> GalaxyDensity:
    """The density `name` over images of `size` x `size` pixels, of `count` galaxies.

    Raises:
        ValueError: no such density, or so many galaxies or pixels are not to be had.
        MissingDataError: the data set is not on this machine.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown prior {name!r}; expected one of {', '.join(KERNELS)}")
    kind, (width, floor) = name.removesuffix("-smooth"), KERNELS[name]
    if kind == "sersic":
        galaxies = sersic_galaxies(count + HELD_OUT, size, torch.Generator().manual_seed(0))
        train, held_out = galaxies[:count], galaxies[count:]
    else:
        data = load_dataset(kind)
        full = data.event_shape[-1]
        if not 1 <= count <= len(data.train):
            raise ValueError(f"galaxies must be within 1..{len(data.train)}, those of data set {kind!r}, got {count}")
        if size < 4 or full % size:
            raise ValueError(f"source_pixels must divide the {full} of data set {kind!r} and be at least 4, got {size}")
        averaged = [torch.nn.functional.avg_pool2d(part, full // size) for part in (data.train[:count], data.held_out)]
        train, held_out = ((part + 1) / 2 for part in averaged)
    flat = train.flatten(1).double()
    kernel: Tensor | float = floor**2
    if width:
        kernel = width**2 * torch.cov(flat.T, correction=0) + floor**2 * torch.eye(flat.shape[1], dtype=torch.float64)
    density = MixtureDenoiser(flat, kernel, event_shape=(1, size, size))
    data_std = float((flat.var(0, correction=0).mean() + density.covariance.diagonal().mean()).sqrt())
    return GalaxyDensity(density=density, data_std=data_std, held_out=held_out)


def sersic_galaxies(count: int, size: int, generator: torch.Generator) -> Tensor:
    """[count, 1, size, size] float32 simulated galaxies, exp(-b (r / R)^(1/n)) with elliptical radius r.

    Their ranges: index n 0.7 to 3, half-light radius R 8 to 20 % of the field, axis ratio 0.3 to 1, any orientation,
    centres off by 3 % of the field, and peaks of 0.3 to 1. b = 2n - 1/3 makes R hold half of the light (Ciotti and
    Bertin 1999, arXiv astro-ph/9911078). Pixels are means over 4 x 4 points.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)

    points = ((torch.arange(4 * size, dtype=torch.float64) + 0.5) / (4 * size)) - 0.5
    index, radius, ratio = uniform(0.7, 3), uniform(0.08, 0.2), uniform(0.3, 1)
    angle, peak = uniform(0, math.pi), uniform(0.3, 1)
    centre = 0.03 * torch.randn(2, count, 1, 1, generator=generator, dtype=torch.float64)
    right, up = points[None, None, :] - centre[0], points[None, :, None] - centre[1]
    along, across = right * angle.cos() + up * angle.sin(), up * angle.cos() - right * angle.sin()
    distance = (ratio * along.square() + across.square() / ratio).sqrt()
    profile = (-(2 * index - 1 / 3) * (distance / radius) ** (1 / index)).exp()
    image = torch.nn.functional.avg_pool2d(profile[:, None], 4)
    return (peak[:, None] * image / image.amax((2, 3), keepdim=True)).float()
