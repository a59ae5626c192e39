r"""`mass-map`: the shapes of galaxies are sheared by all matter before them; how is that matter distributed?

    y = M D kappa + noise,    noise ~ N(0, sigma_e^2 / n) in each component and pixel,

kappa being the convergence (surface density in units of the critical one) in n x n pixels, D the map to shear of Kaiser
and Squires (`envs.operators.shear`), and M the pixels that have galaxies: masked ones have no measurement. y has
gamma_1 of these pixels, row by row, then gamma_2. Nothing here has a unit. Two priors:

    gaussian    x = kappa ~ N(0, P): posterior and evidence are exact,
    lognormal   kappa = kappa_0 (exp(x - s^2 / 2) - 1), x a Gaussian field such that kappa has the power P as well:
                high peaks are about as frequent as in simulations, and kappa > -kappa_0 (Hilbert, Hartlap and
                Schneider 2011, A&A 536, A85).

P is that of pixels (`envs.data.convergence`). The field is periodic, so leave a masked edge around what was seen. The
mean of kappa makes no shear: it stays as the prior has it.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.denoiser import MixtureDenoiser
from diffusion.field_denoiser import FieldDenoiser, hartley
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.data.convergence import KAPPA_TNG_SCALE, kappa_tng, lognormal_power, pixel_power
from envs.data.shear_maps import ShearMap, cosmos_shear, read_shear_map
from envs.data.sky_images import read_mask, read_sky_image
from envs.exact.mixture import MixturePosterior
from envs.exact.whitened import condition_on_weighted
from envs.likelihoods import GaussianLikelihood
from envs.operators import ForwardOperator, LinearOperator, Lognormal, Pixels, Shear, compose
from envs.problem import InverseProblem, Solve
from envs.registry import register

__all__ = ["LognormalConvergence", "mass_map", "survey"]

_log = logging.getLogger(__name__)

ARCMINUTE = math.pi / 180 / 60
LARGEST_EXACT = 48  # pixels on a side of which a matrix of all by all is made


class LognormalConvergence(nn.Module):
    """kappa = lowest (exp(x - s^2 / 2) - 1) of a Gaussian field x of standard deviation s."""

    def __init__(self, event_shape: tuple[int, ...], std: float, lowest: float) -> None:
        super().__init__()
        self.density, self.lowest = Lognormal(event_shape, std), lowest
        self.measurement_shape = tuple(event_shape)

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        density: Tensor = self.density(value)
        return self.lowest * (density - 1)

    def inverse(self, convergence: Tensor) -> Tensor:
        """The x of a `convergence` above -lowest."""
        return (convergence / self.lowest).log1p() + self.density.std**2 / 2


def survey(size: int) -> Tensor:
    """[size, size] bool, what a simulated survey has seen: not an edge of a tenth, nor the surroundings of stars."""
    line = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    right, down = line[None], line[:, None]
    seen = ((right - 0.5).abs() < 0.4) & ((down - 0.5).abs() < 0.4)
    for row, column, radius in ((0.35, 0.3, 0.07), (0.7, 0.62, 0.05), (0.25, 0.75, 0.04)):
        seen = seen & ((down - row).square() + (right - column).square() > radius**2)
    return seen


@register("mass-map")
def mass_map(
    *,
    prior: str = "gaussian",
    data: str = "simulated",
    truth: str = "prior",
    image: int = 0,
    size: int = 32,
    binning: int = 10,
    pixel_scale: float | None = None,
    e1: str | None = None,
    e2: str | None = None,
    noise: str | None = None,
    mask: str | None = None,
    spectrum: str | None = None,
    lowest: float = 0.039,
    sigma_e: float = 0.305,
    galaxies: float = 72.0,
    num_steps: int = 25,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A map of `size` x `size` pixels, each of `binning` x `binning` ones of the data; see the module for `prior`.

    `data`: simulated, of a survey with `galaxies` per square arcmin of shape noise `sigma_e`, whose `truth` is a draw
    of the prior, or simulated: number `image` of the cut-outs of a map of kappaTNG. Or cosmos, or files: FITS images
    `e1`, `e2`, `noise` (standard deviation of each) and `mask` (1: left out). `pixel_scale` is in arcmin, before
    binning: of what is simulated, 0.29 by default, and for files that do not say. `spectrum` is a file of C(l), see
    `pixel_power`, `lowest` the kappa_0 of the lognormal prior, by default that of kappaTNG's skewness.
    """
    for name, number in (("lowest", lowest), ("sigma_e", sigma_e), ("galaxies", galaxies)):
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be positive and finite, got {number}")
    if binning < 1:
        raise ValueError(f"binning must be at least 1, got {binning}")
    if pixel_scale is not None and not pixel_scale > 0:
        raise ValueError(f"pixel_scale must be positive, in arcmin, got {pixel_scale}")
    width = binning * (KAPPA_TNG_SCALE if pixel_scale is None else pixel_scale)  # arcmin
    shape, shear, generator = (1, size, size), None, torch.Generator().manual_seed(seed)
    if data == "simulated":
        if e1 or e2 or noise or mask:
            raise ValueError("e1, e2, noise and mask are those of data: files")
        seen = survey(size)
        std = torch.full((2, size, size), sigma_e / (math.sqrt(galaxies) * width), dtype=torch.float64)
    else:
        whole = cosmos_shear() if data == "cosmos" else _read(data, e1, e2, noise, mask, pixel_scale)
        field = whole.field(size, binning)
        shear, std, seen = (torch.from_numpy(part) for part in (field.shear, field.std, field.seen))
        width = field.pixel_scale / 60
    if not bool(seen.any()):
        raise ValueError(
            f"none of the {size} x {size} pixels, each {binning} x {binning} of the map, has half of a measurement: is "
            "the map smaller than that, or the mask inverted?"
        )
    pixels, physics = Pixels(seen.expand(2, size, size)), Shear(shape)
    operator: ForwardOperator = compose(pixels, physics)
    power = pixel_power(size, width * ARCMINUTE, spectrum)
    convergence: LognormalConvergence | None = None
    if prior == "lognormal":
        power = lognormal_power(power, lowest)
        convergence = LognormalConvergence(shape, math.sqrt(float(power.mean())), lowest)
        operator = compose(operator, convergence)
    elif prior != "gaussian":
        raise ValueError(f"prior must be gaussian or lognormal, got {prior!r}")
    denoiser, data_std = FieldDenoiser(power), math.sqrt(float(power.mean()))
    likelihood = GaussianLikelihood(operator, pixels(std[None])[0])
    known: Tensor | None = None
    if shear is not None:
        measurements = pixels(shear[None])
    elif truth == "prior":
        known = denoiser.sample(1, generator)
        measurements = likelihood.sample(known, generator)
    elif truth == "simulated":
        known, clean = _cut_out(image, size, binning, pixel_scale)
        known = known if convergence is None else convergence.inverse(known)
        measurements = pixels(clean + std * torch.randn(clean.shape, generator=generator, dtype=torch.float64))
    else:
        raise ValueError(f"truth must be prior or simulated, got {truth!r}")
    levels = make_schedule(schedule, num_steps, scale=data_std)
    return InverseProblem(
        name="mass-map",
        prior=Prior(denoiser, levels, shape, denoiser.denoising_variance, data_std),
        likelihood=likelihood,
        measurements=measurements.float(),
        truth=None if known is None else known.float(),
        image_shape=(size, size),
        image=None if convergence is None else lambda value: convergence(value)[:, 0],
        measurement_image=lambda value: _kaiser_squires(value, pixels, physics),
        solve=_solved(power, likelihood) if convergence is None and size <= LARGEST_EXACT else None,
    ).solved()


def _read(
    data: str, e1: str | None, e2: str | None, noise: str | None, mask: str | None, pixel_scale: float | None
) -> ShearMap:
    if data != "files":
        raise ValueError(f"data must be simulated, cosmos or files, got {data!r}")
    if not (e1 and e2 and noise):
        raise ValueError(f"data: files needs the FITS files e1, e2 and noise, got {e1}, {e2} and {noise}")
    scale = None if pixel_scale is None else 60 * pixel_scale
    shape = read_sky_image(Path(e1), pixel_scale=scale, blank=True).values.shape
    left_out = None if mask is None else read_mask(Path(mask), 0, shape)
    if left_out is not None:
        _log.info("%s: %d of %d pixels are masked and left out", mask, left_out.sum(), left_out.size)
    return read_shear_map(Path(e1), Path(e2), (Path(noise), Path(noise)), left_out, scale)


def _cut_out(image: int, size: int, binning: int, pixel_scale: float | None) -> tuple[Tensor, Tensor]:
    """(convergence [1, 1, size, size], its shear [1, 2, size, size]) of part `image` of a field of kappaTNG.

    The shear is that of the whole field, so that of what lies beyond the edges is in it.
    """
    if pixel_scale not in (None, KAPPA_TNG_SCALE):
        raise ValueError(f"truth: simulated has pixels of {KAPPA_TNG_SCALE} arcmin before binning, got {pixel_scale}")
    field, width = kappa_tng()[None, None], size * binning
    across = field.shape[-1] // width
    if not 0 <= image < across**2:
        raise ValueError(
            f"image must be one of the {across**2} cut-outs of {width} x {width} pixels of a field of "
            f"{field.shape[-1]}, got {image}"
        )
    shear: Tensor = Shear(tuple(field.shape[1:]))(field)
    row, column = (width * place for place in divmod(image, across))
    place = (..., slice(row, row + width), slice(column, column + width))
    return nn.functional.avg_pool2d(field[place], binning), nn.functional.avg_pool2d(shear[place], binning)


def _kaiser_squires(value: Tensor, pixels: Pixels, physics: Shear) -> Tensor:
    """[H, W] the transpose of the map to shear, with no shear where nothing was seen; noise and all."""
    seen = pixels.mask[0]
    estimate = physics.adjoint(pixels.adjoint(value[None].double()))[0, 0]
    return torch.where(seen, estimate, torch.nan).float()


def _solved(power: Tensor, likelihood: GaussianLikelihood) -> Solve:
    """The posterior of a field of `power` in closed form."""
    operator, std = likelihood.operator, likelihood.noise_std
    assert isinstance(operator, LinearOperator) and isinstance(std, Tensor)

    def solve(measurement: Tensor) -> tuple[MixturePosterior, None]:
        size, count = len(power), power.numel()
        unit = torch.eye(count, dtype=torch.float64).reshape(count, size, size)
        covariance = hartley(power * hartley(unit)).reshape(count, count)
        density = MixtureDenoiser(torch.zeros(1, count), covariance, event_shape=(1, size, size))
        return condition_on_weighted(density, operator.as_matrix(), std, measurement), None

    return solve
