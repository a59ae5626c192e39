r"""`lensing-euclid`: the source behind a real lens, seen by Euclid in eight bands, or in a file of yours.

The file has three units a band: <BAND>_BGSUB, the image less its background, with a pixel scale in its header;
<BAND>_PSF, the point spread at that scale; <BAND>_RMS, the standard deviation of the noise. Pixels without data (noise
above 10^10 times the smallest) and those that a mask hides are left out of y, and a line of the log says how many.

    y = P (A x + light) / unit + noise,

P what is kept. The lens and its light are those of a fit (`envs.problems.lens_fit`), made first and held fixed: the
light is subtracted from the image, and A is linear, so posterior and evidence are exact as for `lensing-source`. What
the fit leaves uncertain is not in them. The default fit is of the band VIS of the lens 102018665_NEG570040238507752998
of Euclid's first quick release (Q1), by `python docs/make_lensing_figures.py --fit`; other bands need their own.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.data import data_file
from envs.data.point_spread import read_point_spread
from envs.data.sky_coordinates import same_scale
from envs.data.sky_images import SkyImage, pixel_scale_of, read_mask, read_noise_map, read_sky_image
from envs.likelihoods import GaussianLikelihood
from envs.operators import Pixels, compose
from envs.operators.lensing import LensedImage
from envs.problem import InverseProblem
from envs.problems.galaxy_density import galaxy_density
from envs.problems.lens_fit import LensFit, lens_light, read_lens_fit
from envs.problems.lensing_source import solved_linear
from envs.registry import register

__all__ = ["BANDS", "VIS_FIT", "Band", "lensing_euclid", "less_light", "read_band"]

BANDS = ("VIS", "DES_G", "DES_R", "DES_I", "DES_Z", "NIR_Y", "NIR_J", "NIR_H")
LENS = "102018665_NEG570040238507752998.fits"
SOURCE = (
    "the lens 102018665_NEG570040238507752998 of Euclid's Q1 release, in the repository "
    "Jammy2211/euclid_strong_lens_modeling_pipeline, dataset/q1_walsmley"
)
VIS_FIT = LensFit(
    lens=(0.80703, -0.13903, 0.15964, -0.035103, -0.019947, -0.074694, 0.11105),
    light_shape=(-0.02512, -0.067855, -0.18608, 0.25829),
    light=(0.90301, 0.032584, 0.045225, 0.022905, 0.0, 0.0, 0.0, 0.0010271),
    source=(0.17182, -0.0050153, -0.12572, -0.40619, 0.11325, 1.2955),
    brightness=0.016156,
    reduced_chi2=0.3989,
)
"""Of the band VIS, 40 x 40 pixels; another start ends at the same."""

_log = logging.getLogger(__name__)


class Band:
    """A square of one band of a file: image, noise and camera."""

    def __init__(self, image: SkyImage, noise_std: Tensor, seen: Tensor, camera: LensedImage) -> None:
        half, rows, columns = camera.pixels // 2, *image.values.shape
        top, left = rows // 2 - half, columns // 2 - half
        if min(top, left) < 0 or top + camera.pixels > rows or left + camera.pixels > columns:
            raise ValueError(f"{image.place}: pixels must be within 1..{min(rows, columns)}, got {camera.pixels}")
        cut = (slice(top, top + camera.pixels), slice(left, left + camera.pixels))
        self.image, self.noise_std, self.seen = torch.from_numpy(image.values)[cut], noise_std[cut], seen[cut]
        self.camera, self.place = camera, image.place


def read_band(
    path: Path,
    band: str,
    mask: Path | None,
    pixels: int,
    subsampling: int,
    source_pixels: int,
    source_size: float,
    source_centre: tuple[float, float],
) -> Band:
    """The middle `pixels` x `pixels` of `band` of the file `path`, without what the first unit of `mask` hides.

    Raises:
        MissingDataError: no such file, or astropy is not installed.
        ValueError: a unit is missing, or is not what it should be; the message names it.
    """
    image = read_sky_image(path, f"{band}_BGSUB", blank=True)
    shape = image.values.shape
    masked = np.zeros(shape, bool) if mask is None else read_mask(mask, 0, shape)
    noise, unseen = read_noise_map(path, f"{band}_RMS", shape, image, masked)
    hidden = unseen | masked
    place = f"{band}_PSF"
    spread = read_point_spread(path, pixel_scale_of(path, place) or image.pixel_scale, place)
    fine = image.pixel_scale / subsampling
    if not (same_scale(spread.pixel_scale, image.pixel_scale) or same_scale(spread.pixel_scale, fine)):
        raise ValueError(
            f"{path}[{place}]: pixels must be those of the image, of {image.pixel_scale:.4g} arcsec, or of its points, "
            f"of {fine:.4g}, got {spread.pixel_scale:.4g}"
        )
    camera = LensedImage(
        pixels=pixels,
        pixel_scale=image.pixel_scale,
        subsampling=subsampling,
        point_spread=spread,
        source_pixels=source_pixels,
        source_pixel_scale=source_size / source_pixels,
        source_centre=source_centre,
    )
    return Band(image.without(hidden), torch.from_numpy(noise), torch.from_numpy(~hidden), camera)


def less_light(band: Band, model: LensFit, unit: float, noise_scale: float) -> tuple[Pixels, Tensor, Tensor]:
    """(the pixels of `band` that are kept, what they measure [1, Y], its noise [Y]): less the lens's light, in `unit`.

    `noise_scale` is a factor on the noise map. A line of the log says how many pixels are left out.
    """
    if not (unit > 0 and noise_scale > 0):
        raise ValueError(f"unit and noise_scale must be positive, got {unit} and {noise_scale}")
    if not bool(band.seen.any()):
        raise ValueError(f"{band.place}: all of the {band.seen.numel()} pixels are masked, or have no data")
    keep, count = Pixels(band.seen), int((~band.seen).sum())
    _log.info("%s: %d of %d pixels are masked and left out", band.place, count, band.seen.numel())
    left = (band.image - lens_light(band.camera, model)) / unit
    return keep, keep(left[None]), keep((noise_scale * band.noise_std / unit)[None])[0]


@register("lensing-euclid")
def lensing_euclid(
    *,
    path: str = "",
    band: str = "VIS",
    mask: str = "",
    fit: str = "",
    prior: str = "sersic",
    galaxies: int = 500,
    source_pixels: int = 16,
    source_size: float = 0.96,
    pixels: int = 40,
    subsampling: int = 2,
    unit: float = 0.15,
    noise_scale: float = 1.0,
    num_steps: int = 25,
    schedule: str = "vp-cosine-zero-snr",
) -> InverseProblem:
    """The source of a real lens; `path`, `mask` and `fit` (see `envs.problems.lens_fit`) are files, "" Euclid's own.

    `source_size` of the source's field is in arcsec, around where the fit has the source; `unit` is what the image has
    where the brightness is 1, and `noise_scale` a factor on the noise map.
    """
    if not path:
        file = data_file("lens_euclid_q1", LENS, source=SOURCE)
        hidden: Path | None = data_file("lens_euclid_q1", "mask_extra_galaxies.fits", source=SOURCE)
    else:
        file, hidden = Path(path), None
    if not fit and (path or band != "VIS"):
        what = "a file of your own" if path else f"band {band}"
        raise ValueError(f"lensing-euclid: {what} needs a fit of its lens and light, see envs.problems.lens_fit")
    model = read_lens_fit(Path(fit)) if fit else VIS_FIT
    place = (model.source[0], model.source[1])
    hidden = Path(mask) if mask else hidden
    found = read_band(file, band, hidden, pixels, subsampling, source_pixels, source_size, place)
    keep, measurement, noise_std = less_light(found, model, unit, noise_scale)
    source = galaxy_density(prior, source_pixels, galaxies)
    operator = compose(keep, found.camera.matrix(torch.tensor(model.lens, dtype=torch.float64)))
    likelihood = GaussianLikelihood(operator, noise_std)
    blank = found.seen.float().masked_fill(~found.seen, torch.nan)
    return InverseProblem(
        name="lensing-euclid",
        prior=source.prior(num_steps, schedule),
        likelihood=likelihood,
        measurements=measurement.float(),
        image_shape=(source_pixels, source_pixels),
        measurement_image=lambda value: keep.adjoint(value[None].float())[0] * blank,
        solve=solved_linear(source, likelihood),
    ).solved()
