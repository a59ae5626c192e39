r"""What was observed: a table of visibilities, and the field that is to be imaged.

- `simulated`: seven stations in a plane that turns with the Earth under a source of declination 40 degrees, at five
  hour angles from -4 to 4: u = X cos h - Y sin h, v = (X sin h + Y cos h) sin 40. The longest baseline has 0.4 cycles
  a pixel.
- `alma`: the mock observation of rings by ALMA in configuration C43-6 that frank's tutorials use. Its weights are all
  1, which is no noise level. Here it is the scatter of the imaginary parts, as a source that is even about the phase
  centre has none: 8.6 mJy, the same at all baselines to 5 %.
- `as209`: 196 visibilities of the disk AS 209 from DSHARP (Andrews et al. 2018, ApJ 869, L41), by frank.
- `m87`: M87 by the Event Horizon Telescope on 2017 April 11, low band (2019-D01-01). Baselines below 0.1 Glambda see
  1.2 Jy, most of it not in the field, and are left out (and logged). A compact flux of 0.6 Jy is assumed.
- any other name is the path of a file: see `envs.data.visibility_files`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from envs.data import VisibilityTable, data_file, read_visibilities
from envs.operators.visibilities import ARCSECOND

__all__ = ["Observation", "observation", "simulated_table"]

FRANK = "docs/tutorials of github.com/discsim/frank"
EHT = "github.com/eventhorizontelescope/2019-D01-01"
MOCK_NOISE = 8.6e-3  # Jy
INTRA_SITE = 1e8  # wavelengths
STATIONS, ANGLES, DECLINATION = 7, 5, math.radians(40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A table of visibilities and its field."""

    table: VisibilityTable
    """What was seen."""
    field_of_view: float
    """Width of the image, radians."""
    flux: float
    """Total flux of the source, Jy, as far as known: the unit of x."""

    def pixel_size(self, size: int) -> float:
        """Width of a pixel, radians, of an image of `size` x `size`."""
        return self.field_of_view / size

    def within(self, size: int) -> VisibilityTable:
        """The visibilities that an image of `size` x `size` carries: |u| and |v| of at most half a cycle a pixel."""
        most = 0.5 / self.pixel_size(size)
        reason = f"within {most:.4g} wavelengths, half a cycle of {size} pixels in the field"
        return self.table.where(np.maximum(np.abs(self.table.u), np.abs(self.table.v)) <= most, reason)


def observation(data: str, field_of_view: float | None, flux: float | None, flagged: str) -> Observation:
    """The observation called `data`; `field_of_view` in seconds of arc and `flux` in Jy, None for what is known.

    An unknown flux is the median amplitude of the shortest twentieth of the baselines.

    Raises:
        MissingDataError: the file is not on this machine.
    """
    known: dict[str, tuple[float, float | None]] = {"alma": (3.0, None), "as209": (4.0, None), "m87": (1.28e-4, 0.6)}
    if data == "alma":
        table = read_visibilities(data_file("alma_frank", "multi_ring_C43_6.txt.bz2", source=FRANK))
        table = table.with_std(np.full(len(table), MOCK_NOISE))
    elif data == "as209":
        table = read_visibilities(data_file("alma_frank", "test_datafile.txt", source=FRANK))
    elif data == "m87":
        name = "SR1_M87_2017_101_lo_hops_netcal_StokesI.csv"
        table = read_visibilities(data_file("eht_m87_2017", "csv", name, source=EHT))
        table = table.where(table.baseline > INTRA_SITE, "longer than 0.1 Glambda")
    else:
        table = read_visibilities(data, flagged=flagged)
    width = known.get(data, (None, None))[0] if field_of_view is None else field_of_view
    if width is None or not width > 0:
        raise ValueError(f"the observation {data} needs field_of_view, a positive width in arcsec, got {field_of_view}")
    if flux is None:
        flux = known.get(data, (None, None))[1]
    if flux is None:
        short = table.baseline <= np.quantile(table.baseline, 0.05)
        flux = float(np.median(np.abs(table.value[short])))
        if not flux > 0:
            raise ValueError(f"{table.name}: the median amplitude of the shortest baselines is {flux} Jy: give flux")
    if not flux > 0:
        raise ValueError(f"flux must be positive, in Jy, got {flux}")
    return Observation(table=table, field_of_view=width * ARCSECOND, flux=flux)


def simulated_table(pixel_size: float, relative_noise: float, seed: int) -> VisibilityTable:
    """Where the simulated array looks: V = 1 Jy, and noise of `relative_noise` Jy in real and imaginary part each."""
    rng = np.random.default_rng(seed)
    radius, angle = np.sqrt(rng.uniform(0, 1, STATIONS)), rng.uniform(0, 2 * math.pi, STATIONS)
    east, north = radius * np.cos(angle), radius * np.sin(angle)
    hours = np.linspace(-4, 4, ANGLES)
    pairs = list(combinations(range(STATIONS), 2))
    one, other = np.array(pairs).T
    x, y = east[other] - east[one], north[other] - north[one]
    turn = hours[:, None] * math.pi / 12
    u = (x * np.cos(turn) - y * np.sin(turn)).ravel()
    v = ((x * np.sin(turn) + y * np.cos(turn)) * math.sin(DECLINATION)).ravel()
    scale = 0.4 / pixel_size / np.hypot(u, v).max()
    return VisibilityTable(
        name="simulated",
        u=u * scale,
        v=v * scale,
        value=np.ones(len(u), complex),
        std=np.full(len(u), relative_noise),
        time=np.repeat(hours, len(pairs)),
        stations=np.tile(np.array([[f"S{a}", f"S{b}"] for a, b in pairs]), (ANGLES, 1)),
    )
