r"""`psf-deconvolution`: a galaxy behind the blur of a telescope, counted by a camera.

x [1, n, n] is the brightness of each pixel, in units of the brightest a galaxy of the prior can be. Three noises:

    poisson-gaussian   y = gain n + read_std noise,    n ~ Poisson(exposure K f(x) + background),
    gaussian           y = K x + noise_std noise,
    learned            y = K x + noise_std n,    n ~ a diffusion prior of noise, in its standard deviations,

K being the convolution with the point spread (zero beyond the edges), exposure the counts (photo-electrons) of a pixel
of brightness 1, and f(x) = w log(1 + e^(x / w)), w = 0.02, a brightness that is not negative where x, by the width of
the prior's kernels, may be. With Gaussian noise the posterior and the evidence are exact. Learned noise
(`envs.likelihoods.learned_noise`) is that of `noise_prior`, a stored prior over images of noise by name or folder, and
its density is worked out with combs of pixels `noise_spacing` apart (`diffusion.flow_density`): 8 is exact for networks
of the kind plane of depth 2, as `hst-noise`, and smaller ones are cheaper by their square.

Point spreads: `gaussian` of `psf_fwhm` arcsec; `hst`, that of the stamp below; `stack`, number `image` of 100 of
another camera; `variant`, four of these at the corners of the field and blends in between; or the path of a FITS file
of one, [h, w], or of four, [4, h, w]: those at the first and the last column of the first row, and of the last row.
What is measured: `simulated`, a galaxy of the prior; `hst`, a stamp of the COSMOS field by the Hubble Space Telescope;
`stack`, number `image` of 100 noisy galaxies, each with its point spread; or the path of a FITS file.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.flow_density import FlowDensity, flow_density
from diffusion.stored_prior import StoredPriorError
from envs.data import data_file, read_npz
from envs.data.point_spread import (
    PointSpread,
    checked_point_spread,
    gaussian_point_spread,
    read_point_spreads,
)
from envs.data.sky_images import read_mask, read_sky_image
from envs.likelihoods import GaussianLikelihood, LearnedNoiseLikelihood, PoissonGaussianLikelihood
from envs.operators import Composed, Convolution, LinearlyComposed, LinearOperator, Pixels
from envs.operators.space_variant import SpaceVariantBlur, corner_weights
from envs.problem import InverseProblem
from envs.problems.galaxy_density import galaxy_density
from envs.problems.lensing_source import solved_linear
from envs.registry import register

__all__ = ["NotNegative", "psf_deconvolution"]

_log = logging.getLogger(__name__)

SOFTNESS = 0.02
CORNERS = 4
HST_SCALE = 0.03  # arcsec per pixel of the stamp and its point spread, whose file does not say
HST = "the test data of scarlet (pmelchior/scarlet, data/test_resampling): Cut_HST1.fits and PSF_HST.fits"
STACK = "the example of sf_deconvolve (CosmoStat/sf_deconvolve, example): example_image_stack.npy and example_psfs.npy"
SCALE = 0.06  # arcsec, of pixels that are simulated
SIMULATED_NOISE = 0.05
CAMERA = {"exposure": 200.0, "background": 5.0, "read_std": 2.0, "gain": 1.0}  # of what is simulated
NOISES = ("poisson-gaussian", "gaussian", "learned")


class NotNegative(nn.Module):
    """f(x) = w log(1 + exp(x / w)): a brightness that is x where that is well above zero, and never negative."""

    def __init__(self, event_shape: tuple[int, ...], softness: float = SOFTNESS) -> None:
        super().__init__()
        self.measurement_shape = tuple(event_shape)
        self.softness = softness

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return self.softness * torch.nn.functional.softplus(value / self.softness)


@register("psf-deconvolution")
def psf_deconvolution(
    *,
    prior: str = "sersic",
    galaxies: int = 500,
    pixels: int = 16,
    measured: str = "simulated",
    truth: str = "prior",
    image: int = 0,
    row: int = 182,
    column: int = 145,
    binning: int = 1,
    unit: float = 1.0,
    mask: str | None = None,
    psf: str | None = None,
    psf_fwhm: float = 0.15,
    pixel_scale: float | None = None,
    noise: str = "poisson-gaussian",
    exposure: float | None = None,
    background: float | None = None,
    read_std: float | None = None,
    gain: float | None = None,
    noise_std: float = 0.0,
    noise_prior: str = "hst-noise",
    noise_spacing: int = 8,
    num_steps: int = 25,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A blurred galaxy of `pixels` x `pixels`; see the module for `psf`, `measured` and `noise`.

    Of an image that is measured the field is around `row` and `column`, of blocks of `binning` x `binning` pixels, and
    `unit` is what it has where the brightness is 1 (of counts that is `exposure`). `pixel_scale` (arcsec) before
    binning, of what is simulated (0.06 by default) and for files that do not say. Pixels where the FITS image `mask` is
    1 are left out, and so is a block with one of them; the log says how many. `noise_std` is in the units of
    brightness; 0: 0.05 if simulated, else that of the image's sky, 1.4826 times the median absolute deviation. What is
    simulated has by default the `psf` gaussian, an `exposure` of 200, a `background` of 5, a `read_std` of 2 and a
    `gain` of 1; of what is measured they have to be given (the last four for the noise poisson-gaussian).
    """
    if noise not in NOISES:
        raise ValueError(f"noise must be {', '.join(NOISES[:-1])} or {NOISES[-1]}, got {noise!r}")
    if not (unit > 0 and binning >= 1 and noise_std >= 0):
        raise ValueError(
            f"unit must be positive, binning at least 1 and noise_std not negative, got {unit}, {binning}, {noise_std}"
        )
    if noise == "poisson-gaussian" and binning > 1:
        raise ValueError("counts are not averaged: noise poisson-gaussian needs binning 1")
    if mask is not None and (measured in ("simulated", "stack") or noise == "learned"):
        raise ValueError(f"a mask is of a measured image, and learned noise of a whole one: got {measured} and {noise}")
    camera = {"exposure": exposure, "background": background, "read_std": read_std, "gain": gain}
    needed = {"psf": psf} | (camera if noise == "poisson-gaussian" else {})
    missing = [name for name, given in needed.items() if given is None]
    if measured != "simulated" and missing:
        raise ValueError(
            f"a measured image under {noise} noise needs {', '.join(needed)}, got no {', '.join(missing)}"
            + ("; the noise gaussian takes that of the sky" if noise == "poisson-gaussian" else "")
        )
    source = galaxy_density(prior, pixels, galaxies)
    shape, generator = source.density.event_shape, torch.Generator().manual_seed(seed)
    field, sky, scale = None, SIMULATED_NOISE, binning * (SCALE if pixel_scale is None else pixel_scale)
    seen = torch.ones(pixels, pixels, dtype=torch.bool)
    if measured != "simulated":
        field, seen, sky, scale = _field(measured, image, (row, column), pixels, binning, pixel_scale, mask)
        if not (noise_std or sky or noise == "poisson-gaussian"):
            raise ValueError(
                f"{measured}: half of the sky or more has one value: give its noise, noise_std, got 0"
                + ("" if mask is None else f"; is {mask} inverted? It leaves {int(seen.sum())} pixels")
            )
        field, sky = (field, sky) if noise == "poisson-gaussian" else (field / unit, sky / unit)
    operator, keep = _blur(psf or "gaussian", shape, image, psf_fwhm, scale, binning), Pixels(seen[None])
    whole = bool(seen.all())
    if not whole:
        operator = LinearlyComposed(keep, operator)
    likelihood: GaussianLikelihood | PoissonGaussianLikelihood | LearnedNoiseLikelihood
    if noise == "gaussian":
        likelihood = GaussianLikelihood(operator, noise_std or sky)
    elif noise == "learned":
        density = _density(noise_prior, noise_spacing)
        likelihood = LearnedNoiseLikelihood(operator, density, (noise_std or sky) / density.data_std)
    else:
        positive = Composed(operator, NotNegative(shape))
        likelihood = PoissonGaussianLikelihood(
            positive, **{name: CAMERA[name] if given is None else given for name, given in camera.items()}
        )
    known = source.truth(truth, image, generator) if field is None else None
    measurement = likelihood.sample(known, generator) if known is not None else field
    assert measurement is not None
    measurement = measurement.reshape(1, *shape)
    blank = seen.float().masked_fill(~seen, torch.nan)
    return InverseProblem(
        name="psf-deconvolution",
        prior=source.prior(num_steps, schedule),
        likelihood=likelihood,
        measurements=(measurement if whole else keep(measurement)).float(),
        truth=known,
        image_shape=(pixels, pixels),
        measurement_image=lambda value: value[0].float() if whole else keep.adjoint(value[None].float())[0, 0] * blank,
        solve=solved_linear(source, likelihood) if isinstance(likelihood, GaussianLikelihood) else None,
    ).solved()


def _density(noise_prior: str, spacing: int) -> FlowDensity:
    try:
        return flow_density(noise_prior, spacing=spacing)
    except StoredPriorError as error:
        raise ValueError(f"noise_prior must be a stored prior of noise images, by name or folder: {error}") from error


def _field(
    measured: str,
    image: int,
    place: tuple[int, int],
    pixels: int,
    binning: int,
    pixel_scale: float | None,
    mask: str | None,
) -> tuple[Tensor, Tensor, float, float]:
    """(image, where it was seen [pixels, pixels], its sky's standard deviation, arcsec per pixel).

    Pixels are blocks of the file's.
    """
    if measured == "stack":
        whole = _stack("example_image_stack.npy", image)
        hidden, scale, place = torch.zeros_like(whole), pixel_scale or SCALE, (len(whole) // 2,) * 2
    elif measured == "hst":
        path = data_file("hst_hsc_scarlet", "Cut_HST1.fits", source=HST)
        whole, hidden, scale = _sky(path, HST_SCALE, mask)
    else:
        whole, hidden, scale = _sky(Path(measured), pixel_scale, mask)
    blocks = torch.nn.functional.avg_pool2d(whole[None], binning)[0]
    seen = torch.nn.functional.avg_pool2d(hidden[None], binning)[0] == 0
    top, left = (where // binning - pixels // 2 for where in place)
    rows, columns = blocks.shape
    if not (0 <= top <= rows - pixels and 0 <= left <= columns - pixels):
        raise ValueError(
            f"{pixels} x {pixels} pixels around row {place[0] // binning} and column {place[1] // binning} do not lie "
            f"within the {rows} x {columns} of the image"
        )
    cut = (slice(top, top + pixels), slice(left, left + pixels))
    if not bool(seen[cut].any()):
        raise ValueError(f"{mask} masks all of the {pixels} x {pixels} pixels of the field")
    if mask is not None:
        _log.info("%s: %d of %d pixels of the field are masked and left out", mask, (~seen[cut]).sum(), pixels**2)
    sky = float(1.4826 * (blocks[seen] - blocks[seen].median()).abs().median())
    return blocks[cut], seen[cut], sky, binning * scale


def _sky(path: Path, pixel_scale: float | None, mask: str | None) -> tuple[Tensor, Tensor, float]:
    """(image, one where `mask` hides it, arcsec per pixel) of the file `path`."""
    image = read_sky_image(path, pixel_scale=pixel_scale, blank=True)
    shape = image.values.shape
    hidden = np.zeros(shape, bool) if mask is None else read_mask(Path(mask), 0, shape)
    return torch.from_numpy(image.without(hidden).values), torch.from_numpy(hidden).double(), image.pixel_scale


def _stack(name: str, number: int) -> Tensor:
    """[41, 41] number `number` of the stack in the file `name`."""
    path = data_file("galaxy_stack_sf_deconvolve", name, source=STACK)
    stack = read_npz(path)
    if not 0 <= number < len(stack):
        raise ValueError(f"image must be one of the {len(stack)} of {path}, got {number}")
    return torch.from_numpy(stack[number].astype(np.float64))


def _blur(psf: str, shape: tuple[int, ...], image: int, fwhm: float, scale: float, binning: int) -> LinearOperator:
    """The convolution with the point spread called `psf`, for pixels of `scale` arcsec."""
    most = 2 * shape[-1] - 1  # pixels of a kernel by which light gets from one edge of the image to the other
    if psf == "gaussian":
        spreads = [gaussian_point_spread(fwhm, scale)]
    elif psf in ("stack", "variant"):
        spreads = [_of_stack(number, scale) for number in range(image, image + (1 if psf == "stack" else CORNERS))]
    elif psf == "hst":
        whole = read_sky_image(data_file("hst_hsc_scarlet", "PSF_HST.fits", source=HST), pixel_scale=HST_SCALE)
        peaked = torch.from_numpy(whole.values[2:, 2:])  # the peak of its 179 x 179 pixels is at [90, 90]
        spreads = [checked_point_spread(peaked, HST_SCALE, whole.place)]
    else:
        spreads = read_point_spreads(Path(psf), scale / binning)
        if len(spreads) not in (1, CORNERS):
            raise ValueError(f"{psf} must hold one point spread or {CORNERS}, those of the corners, got {len(spreads)}")
    if binning > 1 and psf not in ("gaussian", "stack", "variant"):
        spreads = [spread.at(scale / binning).resampled(scale) for spread in spreads]
    kernels = [spread.at(scale).middle(most) for spread in spreads]
    if len(kernels) == 1:
        return Convolution(shape, kernels[0], "zero")
    return SpaceVariantBlur(shape, torch.stack(kernels), corner_weights(*shape[-2:]))


def _of_stack(number: int, scale: float) -> PointSpread:
    place = f"example_psfs.npy, number {number}"
    return checked_point_spread(_stack("example_psfs.npy", number), scale, place)
