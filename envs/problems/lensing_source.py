r"""`lensing-source`: a galaxy behind a known gravitational lens, with the exact posterior and evidence.

    y = A x + noise,    noise ~ N(0, noise_std^2),

x [1, n, n] the brightness of the source's pixels, y [H, W] that of the image's, in the same unit: the brightest that a
galaxy of the prior can be is 1, and lensing keeps brightness. A is the lens, the means over pixels and the point spread
as one sparse matrix (`envs.operators.lensing`). The prior is a mixture (`envs.problems.galaxy_density`), so the
posterior is one too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.data import data_file, read_npz
from envs.data.point_spread import PointSpread, gaussian_point_spread
from envs.exact.mixture import MixturePosterior, condition_mixture
from envs.likelihoods import GaussianLikelihood
from envs.operators import LinearOperator
from envs.operators.lensing import LensedImage, lens_parameters
from envs.problem import InverseProblem, Solve
from envs.problems.galaxy_density import GalaxyDensity, galaxy_density
from envs.registry import register

__all__ = ["camera", "lensing_source", "solved_linear", "source_map"]

SOURCES = "four high-resolution galaxies of the caustics documentation (Ciela-Institute/caustics), npz, [4, 256, 256]"


def camera(
    pixels: int,
    pixel_scale: float,
    subsampling: int,
    psf_fwhm: float,
    source_pixels: int,
    source_size: float,
    slope: float = 1.0,
) -> LensedImage:
    """A camera with a Gaussian point spread, and a source field of `source_size` arcsec around the middle."""
    spread: PointSpread | None = gaussian_point_spread(psf_fwhm, pixel_scale) if psf_fwhm > 0 else None
    return LensedImage(
        pixels=pixels,
        pixel_scale=pixel_scale,
        subsampling=subsampling,
        point_spread=spread,
        source_pixels=source_pixels,
        source_pixel_scale=source_size / source_pixels,
        slope=slope,
    )


@register("lensing-source")
def lensing_source(
    *,
    prior: str = "sersic",
    galaxies: int = 500,
    source_pixels: int = 16,
    source_size: float = 1.6,
    einstein_radius: float = 0.9,
    ellipticity: tuple[float, float] = (0.1, 0.06),
    centre: tuple[float, float] = (0.05, -0.03),
    shear: tuple[float, float] = (0.03, -0.02),
    slope: float = 1.0,
    pixels: int = 24,
    pixel_scale: float = 0.16,
    subsampling: int = 2,
    psf_fwhm: float = 0.2,
    noise_std: float = 0.2,
    truth: str = "prior",
    image: int = 0,
    num_steps: int = 25,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A lensed galaxy; its `truth` is a draw of the prior, number `image` of those held-out, or of real source-maps.

    The `prior` is sersic or galaxies. Lengths are in arcsec: `source_size` of the source's field, `einstein_radius` and
    `centre` of the lens, `pixel_scale` and `psf_fwhm` (0: no blur) of the camera. `noise_std` is in units of the
    brightest that a galaxy can be.
    """
    source = galaxy_density(prior, source_pixels, galaxies)
    scene = camera(pixels, pixel_scale, subsampling, psf_fwhm, source_pixels, source_size, slope)
    operator = scene.matrix(lens_parameters(einstein_radius, ellipticity, centre, shear))
    likelihood = GaussianLikelihood(operator, noise_std)
    generator = torch.Generator().manual_seed(seed)
    seen = source_map(image, source_pixels) if truth == "source-map" else source.truth(truth, image, generator)
    return InverseProblem(
        name="lensing-source",
        prior=source.prior(num_steps, schedule),
        likelihood=likelihood,
        measurements=likelihood.sample(seen, generator).float(),
        truth=seen,
        image_shape=(source_pixels, source_pixels),
        measurement_image=lambda value: value.float(),
        solve=solved_linear(source, likelihood),
    ).solved()


def source_map(image: int, size: int) -> Tensor:
    """[1, 1, size, size] number `image` of four real galaxies, averaged to as many pixels, its brightest one 1."""
    maps = read_npz(data_file("lens_caustics", "source_maps.npz", source=SOURCES), "source_maps")
    if not 0 <= image < len(maps):
        raise ValueError(f"image must be one of the source maps, 0..{len(maps) - 1}, got {image}")
    full = maps.shape[-1]
    if full % size:
        raise ValueError(f"source_pixels must divide the {full} of a source map, got {size}")
    averaged = torch.nn.functional.avg_pool2d(torch.from_numpy(maps[image]).float()[None, None], full // size)
    return averaged / averaged.max()


def solved_linear(source: GalaxyDensity, likelihood: GaussianLikelihood) -> Solve | None:
    """The posterior in closed form of a linear measurement of `source`, unless that is too large to be worked out.

    Noise may differ from element to element.
    """
    operator, noise_std = likelihood.operator, likelihood.noise_std
    assert isinstance(operator, LinearOperator)
    if not operator.has_matrix:
        return None

    def solve(measurement: Tensor) -> tuple[MixturePosterior, None]:
        density, seen = source.density, measurement.flatten()
        noise = noise_std.flatten() if isinstance(noise_std, Tensor) else noise_std
        parts = (density.means, density.covariance, density.log_weights, operator.as_matrix(), noise, seen)
        return condition_mixture(*parts, density.event_shape), None

    return solve
