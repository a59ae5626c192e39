r"""`lensing-joint`: a galaxy behind a gravitational lens that is not known either.

    y = A(lens) source + noise,    noise ~ N(0, noise_std^2),    x = (source, lens).

x has the n^2 brightnesses of the source's pixels and then the seven `LENS_PARAMETERS`, each in units of its prior's
standard deviation times that of a pixel, so that all of x is of one size. The prior is that of `lensing-source` times
independent Gaussians of the lens's parameters: again a mixture with one covariance, of exact score. The likelihood
traces rays anew for every x, and has its gradient by autograd through the deflection.

A lens of your own is a file as for `lensing-euclid` and a fit of it: the light of the fit is subtracted and held fixed,
the source's field is around the fit's, and the Gaussians of the lens are around the fit's parameters.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.likelihoods import GaussianLikelihood
from envs.operators import compose
from envs.operators.lensing import LENS_PARAMETERS, LensedSource, lens_parameters
from envs.problem import InverseProblem
from envs.problems.galaxy_density import DRAWS, GalaxyDensity, galaxy_density
from envs.problems.lens_fit import read_lens_fit
from envs.problems.lensing_euclid import less_light, read_band
from envs.problems.lensing_source import camera
from envs.registry import register

__all__ = ["lensing_joint", "with_lens"]

ROWS = 128  # x whose rays are traced at a time: their graph is some hundred numbers a ray


class _RowByRow(GaussianLikelihood):
    """The same with its gradient taken of a few x at a time, as the graph of all would not fit into memory."""

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`."""
        parts = zip(value.split(ROWS), measurement.expand(len(value), *self.measurement_shape).split(ROWS), strict=True)
        return torch.cat([super(_RowByRow, self).gradient(*part) for part in parts])


@register("lensing-joint")
def lensing_joint(
    *,
    prior: str = "sersic",
    galaxies: int = 500,
    source_pixels: int = 16,
    source_size: float = 1.6,
    einstein_radius: float = 0.9,
    ellipticity: tuple[float, float] = (0.1, 0.06),
    centre: tuple[float, float] = (0.05, -0.03),
    shear: tuple[float, float] = (0.03, -0.02),
    radius_std: float = 0.02,
    ellipticity_std: float = 0.02,
    centre_std: float = 0.02,
    shear_std: float = 0.01,
    slope: float = 1.0,
    pixels: int = 24,
    pixel_scale: float = 0.16,
    subsampling: int = 1,
    psf_fwhm: float = 0.2,
    noise_std: float = 0.2,
    path: str = "",
    band: str = "VIS",
    mask: str = "",
    fit: str = "",
    unit: float = 0.15,
    noise_scale: float = 1.0,
    num_steps: int = 25,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Source and lens drawn from the prior: the lens around the given parameters, with standard deviations `..._std`.

    Lengths in arcsec; `radius_std` is a fraction of `einstein_radius`. The rest as for lensing-source. With a `path`
    image, point spread and noise are those of its `band`, and the lens's middle that of `fit`; `mask`, `unit` and
    `noise_scale` as for lensing-euclid.
    """
    if not all(value > 0 for value in (radius_std, ellipticity_std, centre_std, shear_std)):
        raise ValueError("standard deviations of the lens's parameters must be positive")
    if bool(path) != bool(fit):
        raise ValueError(f"a file of your own and a fit of its lens go together, got path {path!r} and fit {fit!r}")
    if path and slope != 1:
        raise ValueError(f"a fit is of an isothermal lens, of slope 1, got {slope}")
    source = galaxy_density(prior, source_pixels, galaxies)
    model = read_lens_fit(Path(fit)) if fit else None
    middle = lens_parameters(einstein_radius, ellipticity, centre, shear)
    middle = middle if model is None else torch.tensor(model.lens, dtype=torch.float64)
    spread = [radius_std * float(middle[0]), *[ellipticity_std] * 2, *[centre_std] * 2, *[shear_std] * 2]
    std = torch.tensor(spread, dtype=torch.float64)
    scale = std / source.data_std
    measured: Tensor | None = None
    if model is None:
        scene = camera(pixels, pixel_scale, subsampling, psf_fwhm, source_pixels, source_size, slope)
        likelihood = _RowByRow(LensedSource(scene, middle, scale), noise_std)
    else:
        where, hidden = (model.source[0], model.source[1]), Path(mask) if mask else None
        found = read_band(Path(path), band, hidden, pixels, subsampling, source_pixels, source_size, where)
        keep, measured, noise = less_light(found, model, unit, noise_scale)
        likelihood = _RowByRow(compose(keep, LensedSource(found.camera, middle, scale)), noise)
    density = with_lens(source)
    levels = make_schedule(schedule, num_steps, scale=source.data_std)
    variance = density.denoising_variance(levels.alpha[:-1], levels.sigma[:-1], DRAWS)
    truth: Tensor | None = None
    if measured is None:
        generator = torch.Generator().manual_seed(seed)
        truth = density.sample(1, generator)
        measured = likelihood.sample(truth, generator)
    return InverseProblem(
        name="lensing-joint",
        prior=Prior(density, levels, density.event_shape, variance, source.data_std),
        likelihood=likelihood,
        measurements=measured.float(),
        truth=None if truth is None else truth.float(),
    )


def with_lens(source: GalaxyDensity) -> MixtureDenoiser:
    """The density of `source` times N(0, data_std^2) in each of the lens's parameters, over x flattened."""
    density, count = source.density, len(LENS_PARAMETERS)
    means = torch.nn.functional.pad(density.means, (0, count))
    lens = source.data_std**2 * torch.eye(count, dtype=torch.float64)
    return MixtureDenoiser(means, torch.block_diag(density.covariance, lens), density.log_weights)
