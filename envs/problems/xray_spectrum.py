r"""`xray-spectrum`: what does a source emit, given the counts in the channels of an X-ray telescope?

x is the logarithm of the photon flux in D bins of energy, in units of `flux` (E / keV)^-1.7 photons / cm^2 / s / keV.
Counts in group g of channels are Poisson, with the expectation

    s_g = exposure a sum_{c in g} sum_j R[j, c] A_j integral over bin j of flux (E / keV)^-1.7 exp(x_d(E)) dE
        = sum_d M[g, d] exp(x_d),

A being the effective area, a what it is multiplied by (AREASCAL), R the redistribution matrix, and x the same within a
bin; the first and the last bin reach to the ends of the response, from where photons may be detected in the channels
that count. A background is measured in a region beside the source, and integrated out (`envs.likelihoods.background`).
Of B counts there, B ratio are expected among the source's, ratio being that of exposure x AREASCAL x BACKSCAL.

The prior is a kernel density of simulated spectra (`envs.data.xray_spectra`), a Gaussian mixture whose score is exact:
a Gaussian of standard deviation `bandwidth` about each. Or it is a trained one, `spectra` or your own, of which the
density is not known.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.data import MissingDataError, load_dataset
from envs.data.ogip import (
    CountSpectrum,
    EffectiveArea,
    Redistribution,
    check_same_energies,
    read_arf,
    read_pha,
    read_rmf,
)
from envs.data.xray_spectra import REFERENCE_INDEX, energy_edges
from envs.likelihoods import MeasuredBackgroundLikelihood, PoissonLikelihood
from envs.problem import InverseProblem
from envs.problems.trained_prior import trained_prior
from envs.registry import register

__all__ = ["Folded", "Observation", "folding_matrix", "mock_observation", "read_observation", "xray_spectrum"]

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

DRAWS = 128  # that give the error of the prior's estimate to a few percent, in a tenth of the time
MOCK_CHANNELS, MOCK_ENERGIES = 64, 200
MOCK_EXPOSURE = 2.0e4  # s
MOCK_BACKGROUND = 1.0  # expected counts of background in a channel of the source region
MOCK_RATIO = 0.2  # of the source region's area to the background's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """Counts and what is needed to make sense of them, for the channels that count."""

    counts: Array
    """[G] counts of every group of channels; zeros in a mock."""
    response: Array
    """[E, G] exposure times effective area times probability, cm^2 s."""
    energy: Array
    """[E, 2] edges of the energy bins of the response, keV."""
    channel_energy: Array
    """[G, 2] nominal energies of the groups, keV."""
    background: Array | None = None
    """[G] counts of the background measurement, if there is one."""
    ratio: float = 1.0
    """Exposure, effective area and region of the source measurement over those of the background's."""


class Folded(nn.Module):
    """Expected counts of the source, M exp(x)."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        """`matrix` M [G, D], counts where x = 0."""
        super().__init__()
        self.measurement_shape: tuple[int, ...] = (len(matrix),)
        self.register_buffer("matrix", matrix.double())

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return value.exp() @ self.matrix.to(value).T


def folding_matrix(observation: Observation, edges: Array, flux: float) -> Tensor:
    """M [G, D] float64, see the module, for `edges` [D + 1] of the bins of x in keV, and the unit `flux`."""
    reach = edges.copy()
    reach[0], reach[-1] = min(reach[0], observation.energy[0, 0]), max(reach[-1], observation.energy[-1, 1])
    low = np.maximum(observation.energy[:, :1], reach[:-1])
    high = np.minimum(observation.energy[:, 1:], reach[1:])
    power = 1 - REFERENCE_INDEX
    with np.errstate(divide="ignore"):  # of a response that begins at 0 keV the unit of flux would be infinite
        photons = np.where(high > low, (high**power - np.maximum(low, 0.01) ** power) / power, 0.0)
    return torch.from_numpy(flux * observation.response.T @ np.maximum(photons, 0.0))


def mock_observation() -> Observation:
    """A detector of silicon behind mirrors: 64 channels of 0.3 to 8 keV, and no counts yet.

    The energy resolution is Fano's with some noise of the electronics, sigma^2 = (0.04 keV)^2 + 0.115 x 3.65 eV x E;
    the area rises to 400 cm^2, falls off at high energies and has a step at the iridium edge of 2.05 keV.
    """
    from scipy.special import ndtr

    edges = np.geomspace(0.3, 9.0, MOCK_ENERGIES + 1)
    energy = np.stack([edges[:-1], edges[1:]], 1)
    middle = np.sqrt(energy[:, 0] * energy[:, 1])
    area = 400 * np.exp(-((0.5 / middle) ** 2)) / (1 + (middle / 5) ** 4) * np.where(middle > 2.05, 0.75, 1.0)
    channels = np.linspace(0.3, 8.0, MOCK_CHANNELS + 1)
    spread = np.sqrt(0.04**2 + 0.115 * 3.65e-3 * middle)[:, None]
    below = ndtr((channels - middle[:, None]) / spread)
    background = np.round(np.full(MOCK_CHANNELS, MOCK_BACKGROUND / MOCK_RATIO))
    return Observation(
        counts=np.zeros(MOCK_CHANNELS),
        response=MOCK_EXPOSURE * area[:, None] * np.diff(below, axis=1),
        energy=energy,
        channel_energy=np.stack([channels[:-1], channels[1:]], 1),
        background=background,
        ratio=MOCK_RATIO,
    )


def read_observation(
    spectrum: Path,
    arf: Path | None = None,
    rmf: Path | None = None,
    background: Path | None = None,
    *,
    low: float = 0.5,
    high: float = 7.0,
    group: int = 0,
) -> Observation:
    """The observation in a PHA file; the other files are those that its header names, beside it, unless given.

    A `background` called none, in either case, is no file: no background is used, even if the header names one.
    Channels of a nominal energy outside of `low` to `high` keV, or of a QUALITY other than 0, do not count, and a line
    of the log says how many. `group` of them are added up at a time; 0 keeps the file's groups, whole ones.

    Raises:
        MissingDataError: a file is not there.
        ValueError: a file cannot be read, two do not match, or no channel is left.
    """
    source = read_pha(spectrum)
    rmf, arf = rmf or _named(source, "RESPFILE", "rmf"), arf or _named(source, "ANCRFILE", "arf")
    if background is None:
        background = _named(source, "BACKFILE", "background")
    elif str(background).lower() == "none":
        background = None
        if "BACKFILE" in source.named:
            _log.info("%s: no background is used, its BACKFILE %s is left out", spectrum, source.named["BACKFILE"])
    if rmf is None:
        raise ValueError(f"{spectrum} names no RESPFILE in its header; give the RMF by hand")
    redistribution = read_rmf(rmf)
    matrix, area = redistribution.matrix, _area(redistribution, spectrum, arf)
    channels = redistribution.first_channel + np.arange(matrix.shape[1])
    if len(source.channel) != len(channels) or source.channel[0] != channels[0]:
        raise ValueError(
            f"{spectrum} has channels {source.channel[0]} to {source.channel[-1]}, but {rmf} {channels[0]} to "
            f"{channels[-1]}"
        )
    beside = None if background is None else read_pha(background)
    if beside is not None and not np.array_equal(beside.channel, source.channel):
        raise ValueError(f"{background} must have the {len(source.channel)} channels of {spectrum}")
    energy = redistribution.channel_energy
    within = (energy.min(1) >= low) & (energy.max(1) <= high)
    used = within & source.good & (True if beside is None else beside.good)
    if group < 0:
        raise ValueError(f"group must be a number of channels, or 0 for the groups of the file, got {group}")
    if group:
        label = np.where(used, (np.cumsum(used) - 1) // group, -1)
    else:
        cut = np.unique(source.group[~used])  # a group is used whole or not at all
        label = np.where(np.isin(source.group, cut), -1, source.group)
    groups = np.unique(label[label >= 0])
    if not len(groups):
        raise ValueError(f"{spectrum} has no good channel within {low:g} to {high:g} keV")
    member = (label[:, None] == groups).astype(np.float64)  # [C, G]
    _log.info(
        "%s: %d of %d channels, with %d of %d counts, are left out: %d beyond %g to %g keV, %d by their QUALITY, the "
        "others with their group",
        *(spectrum, (label < 0).sum(), len(label), source.counts[label < 0].sum(), source.counts.sum()),
        *((~within).sum(), low, high, (within & ~used).sum()),
    )
    response = source.exposure * source.area_scale * area[:, None] * (matrix @ member)
    counts = source.counts @ member
    empty = ~(response > 0).any(0)
    if (empty & (counts > 0)).any() and beside is None:
        worst = int(groups[(empty & (counts > 0)).argmax()])
        first = int(source.channel[(label == worst).argmax()])
        told = rmf if redistribution.includes_area else f"{rmf} with {arf}"
        raise ValueError(f"{spectrum} has counts in channel {first}, where {told} says that no photon is detected")
    return Observation(
        counts=counts,
        response=response,
        energy=redistribution.energy,
        channel_energy=np.array([[energy[label == g].min(), energy[label == g].max()] for g in groups]),
        background=None if beside is None else beside.counts @ member,
        ratio=1.0 if beside is None else _extent(source, beside) / _extent(beside, source),
    )


def _named(spectrum: CountSpectrum, key: str, option: str) -> Path | None:
    """The file that the header of a spectrum names, beside it; `option` is that by which another is given."""
    if key not in spectrum.named:
        return None
    path = spectrum.path.parent / spectrum.named[key]
    if not path.is_file():
        other = "another, or none" if key == "BACKFILE" else "another"
        raise MissingDataError(
            f"there is no file {path}, which {key} of {spectrum.path} names; give {other} as {option}"
        )
    return path


def _extent(spectrum: CountSpectrum, other: CountSpectrum) -> float:
    """Exposure times effective area times region, which background counts go with; for a ratio to that of `other`."""
    if spectrum.region is None:
        raise ValueError(
            f"{spectrum.path} must have the keyword BACKSCAL: without the size of its region the background cannot be "
            f"scaled to or from that of {other.path}"
        )
    return spectrum.exposure * spectrum.area_scale * spectrum.region


def _area(redistribution: Redistribution, spectrum: Path, arf: Path | None) -> Array:
    """[E] cm^2 by which the matrix is to be multiplied."""
    if redistribution.includes_area:
        if arf is not None:
            raise ValueError(
                f"{redistribution.path} has the effective area in it (HDUCLAS3 = FULL), so {arf} is one too many"
            )
        return np.ones(len(redistribution.energy))
    if arf is None:
        raise ValueError(f"{spectrum} names no ANCRFILE in its header; give the ARF by hand")
    area: EffectiveArea = read_arf(arf)
    check_same_energies(area, redistribution)
    return area.area


@register("xray-spectrum")
def xray_spectrum(
    *,
    spectrum: str | None = None,
    arf: str | None = None,
    rmf: str | None = None,
    background: str | None = None,
    simulated: bool = False,
    low: float = 0.5,
    high: float = 7.0,
    group: int = 0,
    bins: int = 24,
    flux: float = 3.0e-4,
    prior: str | None = None,
    spectra: int = 2_000,
    bandwidth: float = 0.12,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """The spectrum behind the PHA file `spectrum`, or one drawn from the prior with `seed` behind a mock telescope.

    `arf`, `rmf` and `background` are files that the header of `spectrum` does not name; "none" for `background` uses
    none even if it names one. `simulated` takes all but the counts from the files, and draws these. x has `bins` bins
    within `low` to `high` keV; `flux` is what you expect of the source at 1 keV, within a factor of ten. The prior is
    that of `spectra` simulated ones, or a trained one, `prior` by name or folder, whose bins must be these.
    """
    if spectrum is None and (arf or rmf or background):
        raise ValueError("arf, rmf and background are those of a spectrum, and there is none")
    if not (flux > 0 and np.isfinite(flux)):
        raise ValueError(f"flux must be positive and finite, in photons / cm^2 / s / keV at 1 keV, got {flux}")
    observation = (
        mock_observation()
        if spectrum is None
        else read_observation(
            Path(spectrum), *(None if name is None else Path(name) for name in (arf, rmf, background)),
            low=low, high=high, group=group,
        )
    )  # fmt: skip
    made, density = _prior(prior, spectra, bins, low, high, bandwidth, num_steps, schedule)
    operator = Folded(folding_matrix(observation, energy_edges(low, high, bins), flux))
    likelihood: PoissonLikelihood | MeasuredBackgroundLikelihood = PoissonLikelihood(operator)
    if observation.background is not None:
        beside = torch.from_numpy(observation.background)
        likelihood = MeasuredBackgroundLikelihood(operator, beside, observation.ratio)
    truth, measurements = None, torch.from_numpy(observation.counts)[None]
    if spectrum is None or simulated:
        generator = torch.Generator().manual_seed(seed)
        truth = made.sample(1, generator).double() if density is None else density.sample(1, generator)
        measurements = likelihood.sample(truth, generator)
    return InverseProblem(
        name="xray-spectrum",
        prior=made,
        likelihood=likelihood,
        measurements=measurements.float(),
        truth=None if truth is None else truth.float(),
    )


def _prior(
    stored: str | None,
    spectra: int,
    bins: int,
    low: float,
    high: float,
    bandwidth: float,
    num_steps: int,
    schedule: str,
) -> tuple[Prior, MixtureDenoiser | None]:
    """The prior, and its density where that is known."""
    if stored is not None:
        return trained_prior(stored, (bins,), num_steps, schedule, "xray-spectra", low=low, high=high), None
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    data = load_dataset("xray-spectra", count=spectra, bins=bins, low=low, high=high)
    density = MixtureDenoiser(data.train, bandwidth**2)
    data_std = float((data.train.double().var(0, correction=0).mean() + bandwidth**2).sqrt())
    levels = make_schedule(schedule, num_steps, scale=data_std)
    variance = density.denoising_variance(levels.alpha[:-1], levels.sigma[:-1], DRAWS)
    return Prior(density, levels, (bins,), variance, data_std), density
