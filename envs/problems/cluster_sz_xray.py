r"""`cluster-sz-xray`: the gas of a round cluster of galaxies, from a Sunyaev-Zeldovich map and an X-ray map together.

    SZ      s_i ~ N(y_i, sigma_i^2),                 y of the electrons' pressure, blurred by a Gaussian beam,
    X-rays  c_i ~ Poisson(exposure_i I_i + b_i),     I of their density and temperature.

Both likelihoods are summed; what they see, and units, are in `envs.operators.cluster_gas`. x [2, K] is log density and
log pressure at K radii, each less that of a reference cluster. The prior is a kernel density of simulated profiles
(`envs.data.cluster_profiles`) whose kernels have their covariance, so that its score is exact, and the reference
posterior is by importance sampling. Or it is a trained one, `clusters` or your own, of which the density is not known:
then there is no reference. What holds the gas follows from x, if it is at rest: `cluster_masses`.

The measurement is the SZ map, in units of 1e-5, row by row, and then the counts; pixels that were not seen have no
place in it. The cluster is in the middle of both maps. It is a model: round, without clumps, lines or absorption.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from diffusion.stored_prior import read_prior
from envs.data import load_dataset
from envs.data.cluster_profiles import (
    MASS_PER_ELECTRON,
    MPC,
    PROTON,
    SOLAR,
    angular_distance,
    hydrostatic_mass,
    knots,
    reference,
)
from envs.data.sky_images import SkyImage, read_noise_map, read_sky_image
from envs.exact.weighted import WeightedPosterior, weighted_posterior
from envs.likelihoods import GaussianLikelihood, PoissonLikelihood, SimulableJointLikelihood, joint
from envs.operators.abel import projected_map
from envs.operators.cluster_gas import UNIT, Compton, Profiles, XrayPhotons
from envs.problem import InverseProblem
from envs.problems.trained_prior import trained_prior
from envs.registry import register

__all__ = ["ClusterMasses", "cluster_masses", "cluster_sz_xray"]

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

NO_UNIT = (  # what BUNIT may say
    "no unit (Compton's y)",
    "1",
    "y",
    "Compton",
    "Compton y",
    "Compton-y",
    "Compton parameter",
    "dimensionless",
    "unitless",
    "none",
)
COUNT = ("counts", "count", "ct", "cts", "photon", "photons", "counts / pixel", "count / pixel")
EXPOSURE = ("cm^2 s", "s cm^2", "cm2 sec", "sec cm2", "cm^2 s count / photon")
ARCMINUTE = math.pi / 180 / 60
FWHM = 2 * math.sqrt(2 * math.log(2))  # standard deviations
DATA = "cluster-profiles"
MOCK_SZ, MOCK_COUNTS = (12, 1.0), (24, 0.5)  # pixels on a side of simulated maps, and arcmin
WIDTH, FLOOR = 0.5, 0.02  # of the kernels: held-out profiles are about as likely from 0.4 to 0.8
DRAWS = 128  # that give the error of the prior's estimate to a few percent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterMasses:
    """Masses within radii, in units of 1e14 M_sun, of N clusters."""

    radius: Array
    """[K - 1] Mpc, the middles of the radii of x."""
    total: Array
    """[N, K - 1] all mass, by hydrostatic equilibrium: gas that moves is not held up by pressure alone."""
    gas: Array
    """[N, K - 1] gas."""

    @property
    def dark(self) -> Array:
        """[N, K - 1] all but gas: dark matter, and stars, which are a hundredth or two."""
        return self.total - self.gas


def cluster_masses(value: Tensor, redshift: float = 0.3) -> ClusterMasses:
    """The masses of clusters x = `value` [N, 2, K] at `redshift`."""
    radii = value.shape[-1]
    ends = np.log(knots(radii))
    radius = np.exp(0.5 * (ends[1:] + ends[:-1]))
    near = reference(radius * np.exp([[-1e-4], [0.0], [1e-4]]), redshift)  # [2, 3, K - 1]
    x = value.double().cpu().numpy()
    slope = np.diff(x[:, 1], axis=-1) / np.diff(ends) + (near[1, 2] - near[1, 0]) / 2e-4
    log_density, log_pressure = 0.5 * (x[..., 1:] + x[..., :-1]).transpose(1, 0, 2) + near[:, None, 1]
    total = hydrostatic_mass(radius, np.exp(log_pressure - log_density), slope)
    profiles = Profiles(radii, redshift)
    density = profiles(value.double().cpu())[:, 0].exp().numpy()
    edges = profiles.edges.numpy()
    inside = np.minimum(edges[1:], radius[:, None]) ** 3 - np.minimum(edges[:-1], radius[:, None]) ** 3  # [K - 1, S]
    gas = density @ inside.T * (4 / 3 * math.pi * MPC**3 * MASS_PER_ELECTRON * PROTON / SOLAR)
    return ClusterMasses(radius=radius, total=total / 1e14, gas=gas / 1e14)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Map:
    """Pixels of a square map."""

    pixels: int
    width: float  # arcmin
    seen: NDArray[np.bool_]  # [H, H]
    values: Array | None = None  # [H, H], of what was measured
    image: SkyImage | None = None  # what it was read as

    def paths(self, edges: Tensor, distance: float, beam: float = 0.0) -> Tensor:
        """[Y, S] Mpc through shells, of pixels that were seen, the cluster being `distance` Mpc away."""
        scale = ARCMINUTE * distance
        whole = projected_map(edges, self.pixels, self.width * scale, beam * scale / FWHM)
        return whole[torch.from_numpy(self.seen.flatten())]

    def of(self, values: Array | float) -> Tensor:
        """[Y] those of `values`, a map or a number, in pixels that were seen."""
        return torch.from_numpy(np.broadcast_to(np.asarray(values, float), self.seen.shape)[self.seen])


@register("cluster-sz-xray")
def cluster_sz_xray(
    *,
    sz: str | None = None,
    sz_noise: str | None = None,
    counts: str | None = None,
    exposure_map: str | None = None,
    background_map: str | None = None,
    redshift: float = 0.3,
    beam: float = 1.4,
    noise_std: float = 1.0e-5,
    exposure: float = 5.0e5,
    background: float = 0.5,
    band: tuple[float, float] = (0.5, 2.0),
    radii: int = 8,
    prior: str | None = None,
    clusters: int = 1_000,
    truth: str = "prior",
    image: int = 0,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A cluster at `redshift`: a draw of the prior, simulated with `seed`, `truth` number `image` held-out, or yours.

    Simulated maps are of 12 x 12 arcmin, the SZ map in pixels of 1 and counts in pixels of 0.5 arcmin. Your own: FITS
    images `sz` (Compton's y) and `counts`, square and with a pixel scale; maps of their noise (`sz_noise`), exposure
    (cm^2 s, 0 where nothing was seen) and background (counts) go before the numbers `noise_std`, `exposure` and
    `background`. `beam` is the full width at half maximum of the SZ map in arcmin, `band` that of the counts in keV.
    The prior is that of `clusters` simulated ones, or a trained one, `prior` by name or folder, of these `radii` at
    this `redshift`; the held-out clusters are those of its data.
    """
    for name, number in (("noise_std", noise_std), ("exposure", exposure), ("background", background), ("beam", beam)):
        if not (number >= 0 and math.isfinite(number)) or (number == 0 and name in ("noise_std", "exposure")):
            raise ValueError(f"{name} must be positive and finite, got {number}")
    if not 0 < band[0] < band[1] <= 20:
        raise ValueError(f"band must be two energies in keV that ascend, up to 20, got {list(band)}")
    if (sz is None) != (counts is None):
        raise ValueError(f"sz and counts go together, got {sz} and {counts}")
    noise: Array | float = noise_std
    exposed: Array | float = exposure
    beside: Array | float = background
    if sz is None or counts is None:
        if sz_noise or exposure_map or background_map:
            raise ValueError("sz_noise, exposure_map and background_map are those of maps sz and counts")
        sky, photons = (_Map(pixels=n, width=width, seen=np.ones((n, n), bool)) for n, width in (MOCK_SZ, MOCK_COUNTS))
    else:
        sky, noise = _sz_map(Path(sz), sz_noise, noise_std)
        photons, exposed, beside = _count_map(Path(counts), exposure_map, exposure, background_map, background)
        if sky.image is not None and photons.image is not None:
            sky.image.check_centre(photons.image)
    made, density, held_out = _prior(prior, radii, clusters, redshift, num_steps, schedule)
    profiles, distance = Profiles(radii, redshift), angular_distance(redshift)
    pixel = (photons.width * ARCMINUTE) ** 2
    compton = Compton(profiles, sky.paths(profiles.edges, distance, beam))
    emitted = XrayPhotons(profiles, photons.paths(profiles.edges, distance), pixel, redshift, np.array(band))
    gaussian = GaussianLikelihood(compton, sky.of(noise) / UNIT)
    likelihood = joint([gaussian, PoissonLikelihood(emitted, photons.of(exposed), photons.of(beside))])
    assert isinstance(likelihood, SimulableJointLikelihood)
    generator = torch.Generator().manual_seed(seed)
    known: Tensor | None = None
    if sky.values is not None and photons.values is not None:
        measurements = torch.cat([sky.of(sky.values) / UNIT, photons.of(photons.values)])[None]
    else:
        if truth == "prior":
            known = made.sample(1, generator).double() if density is None else density.sample(1, generator)
        else:
            known = _held_out(truth, image, prior, held_out)
        measurements = likelihood.sample(known, generator)

    def log_likelihood(value: Tensor, measurement: Tensor) -> Tensor:
        return torch.cat([likelihood.log_prob(x, measurement.expand(len(x), -1)) for x in value.float().split(1_000)])

    def solve(measurement: Tensor) -> tuple[WeightedPosterior, None]:
        assert density is not None
        return weighted_posterior(density, lambda value: log_likelihood(value, measurement)), None

    return InverseProblem(
        name="cluster-sz-xray",
        prior=made,
        likelihood=likelihood,
        measurements=measurements.float(),
        truth=None if known is None else known.float(),
        solve=None if density is None else solve,
    ).solved()


def _prior(
    trained: str | None, radii: int, clusters: int, redshift: float, num_steps: int, schedule: str
) -> tuple[Prior, MixtureDenoiser | None, Tensor | None]:
    """The prior; its density where that is known, and clusters that it has not seen."""
    if trained is not None:
        return trained_prior(trained, (2, radii), num_steps, schedule, DATA, redshift=redshift), None, None
    data = load_dataset(DATA, count=clusters, radii=radii, redshift=redshift)
    flat = data.train.flatten(1).double()
    kernel = WIDTH**2 * torch.cov(flat.T, correction=0) + FLOOR**2 * torch.eye(2 * radii, dtype=torch.float64)
    density = MixtureDenoiser(flat, kernel, event_shape=(2, radii))
    data_std = float((density.means.var(0, correction=0).mean() + density.covariance.diagonal().mean()).sqrt())
    levels = make_schedule(schedule, num_steps, scale=data_std)
    variance = density.denoising_variance(levels.alpha[:-1], levels.sigma[:-1], DRAWS)
    return Prior(density, levels, density.event_shape, variance, data_std), density, data.held_out


def _held_out(truth: str, image: int, trained: str | None, held_out: Tensor | None) -> Tensor:
    if truth != "held-out":
        raise ValueError(f"truth must be prior or held-out, got {truth!r}")
    if trained is not None:  # its own data: another set of clusters could hold some that it was trained on
        options = dict(read_prior(trained).data or {})
        if options.pop("name", None) != DATA:
            raise ValueError(f"truth held-out needs a prior of {DATA}, which {trained!r} is not")
        held_out = load_dataset(DATA, **options).held_out
    assert held_out is not None
    if not 0 <= image < len(held_out):
        raise ValueError(f"image must be one of the held-out clusters, 0..{len(held_out) - 1}, got {image}")
    return held_out[image : image + 1].double()


def _square(path: Path, units: tuple[str, ...], width: float | None = None) -> SkyImage:
    """The map in `path`; a `width` (arcsec) must be its own, and BUNIT one of `units`, if it says anything.

    Where nothing was measured it may hold NaN.
    """
    found = read_sky_image(path, pixel_scale=width, units=units, blank=True)
    if found.values.shape[0] != found.values.shape[1]:
        raise ValueError(f"{found.place} must be square, the cluster in its middle, got {list(found.values.shape)}")
    return found


def _beside(path: str, like: SkyImage, least: str, units: tuple[str, ...], hidden: NDArray[np.bool_]) -> Array:
    """A map of the pixels of `like`, nowhere below zero, and zero where `hidden`."""
    found = _square(Path(path), units, like.pixel_scale)
    shape = list(like.values.shape)
    if list(found.values.shape) != shape:
        raise ValueError(f"{found.place} must be of the shape {shape} of its map, got {list(found.values.shape)}")
    like.check_centre(found)
    values = found.without(hidden).values
    _check(found.place, f"{least} must be 0 and more", values, values >= 0)
    return values


def _check(place: str, expected: str, values: Array, fine: NDArray[np.bool_]) -> None:
    if not fine.all():
        row, column = np.argwhere(~fine)[0]
        raise ValueError(
            f"{place}: {expected}, got {values[row, column]:g} at [{row}, {column}], one of {int((~fine).sum())}"
        )


def _sz_map(path: Path, noise: str | None, noise_std: float) -> tuple[_Map, Array | float]:
    found = _square(path, NO_UNIT)
    seen, std = np.ones(found.values.shape, bool), None
    if noise is not None:
        std, unseen = read_noise_map(Path(noise), 0, found.values.shape, found)
        seen = ~unseen
        _log.info("%s: %d of %d pixels have no measurement and are left out", noise, unseen.sum(), unseen.size)
    values = found.without(~seen).values
    if float(np.abs(values).max()) > 0.1:
        raise ValueError(
            f"{found.place}: Compton's y is below 0.1 everywhere, got {np.abs(values).max():g}: of other units?"
        )
    return _Map(
        pixels=len(values), width=found.pixel_scale / 60, seen=seen, values=values, image=found
    ), noise_std if std is None else std


def _count_map(
    path: Path, exposure_map: str | None, exposure: float, background_map: str | None, background: float
) -> tuple[_Map, Array | float, Array | float]:
    found = _square(path, COUNT)
    place, everywhere = found.place, np.zeros(found.values.shape, bool)
    exposed: Array | float = exposure
    if exposure_map is not None:
        exposed = _beside(exposure_map, found, "the exposure", EXPOSURE, everywhere)
    seen = np.broadcast_to(np.asarray(exposed) > 0, found.values.shape).copy()
    beside: Array | float = background
    if background_map is not None:
        beside = _beside(background_map, found, "the background", COUNT, ~seen)
    values = np.where(~seen & np.isnan(found.values), 0.0, found.values)
    _check(place, "counts must be whole numbers of 0 and more", values, (values >= 0) & (values == np.round(values)))
    _check(place, "there must be no counts where the exposure is 0", values, seen | (values == 0))
    if not seen.any():
        raise ValueError(f"{exposure_map}: the exposure is 0 everywhere")
    if exposure_map is not None:
        _log.info("%s: %d of %d pixels have exposure 0 and are left out", exposure_map, (~seen).sum(), seen.size)
    return (
        _Map(pixels=len(values), width=found.pixel_scale / 60, seen=seen, values=values, image=found),
        exposed,
        beside,
    )
