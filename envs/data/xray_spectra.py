r"""`xray-spectra`: X-ray spectra of hot gas and of active galaxies, simulated from a physical model.

The photon flux at energy E (keV), in photons / cm^2 / s / keV up to a factor, is one of

    thermal    (1 + lines) g(E / kT) exp(-E / kT) / E    bremsstrahlung of optically thin gas at temperature kT,
    power law  E^-Gamma                                  with a fluorescent line of iron in every other one,

behind a hydrogen column N_H: both times exp(-N_H sigma(E)). g is the Gaunt factor averaged over thermal electrons in
Born's approximation, g(u) = (sqrt(3) / pi) exp(u / 2) K_0(u / 2) (Rybicki and Lightman 1979, chapter 5, for the
emission), and sigma the cross section per hydrogen atom of gas of cosmic abundances (Morrison and McCammon 1983, ApJ
270, 119, table 2). Lines are Gaussian, at the energies of the strongest ones of a cluster, and redshifted with all
else. It is a set of plausible shapes to learn from, not a plasma code: no ionisation balance, and strengths are drawn.

x is the logarithm of the flux averaged over each of a number of bins of equal width in log E, in units of the flux
E^-1.7 at 1 keV = 1; its overall level is normal with a standard deviation of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from envs.data.dataset import Dataset, parted

__all__ = ["REFERENCE_INDEX", "absorption", "bremsstrahlung", "energy_edges", "xray_spectra"]

Array = NDArray[np.float64]

REFERENCE_INDEX = 1.7  # photon index of the unit of flux; a typical active galaxy's
FINE = 16  # energies in a bin, over which the flux is averaged
LINES = {"O VIII": 0.65, "Fe L": 1.0, "Mg XII": 1.47, "Si XIV": 2.0, "S XVI": 2.62, "Fe XXV": 6.7}  # keV, at rest
FLUORESCENCE = 6.4  # keV, of neutral iron
WIDTH = 0.06  # keV, standard deviation of a line; those of neighbouring ions are blended
# Upper end of the range in keV, and c_0, c_1, c_2 of sigma = (c_0 + c_1 E + c_2 E^2) E^-3 1e-24 cm^2.
CROSS_SECTION = np.array(
    [
        (0.100, 17.3, 608.1, -2150.0),
        (0.284, 34.6, 267.9, -476.1),
        (0.400, 78.1, 18.8, 4.3),
        (0.532, 71.4, 66.8, -51.4),
        (0.707, 95.5, 145.8, -61.1),
        (0.867, 308.9, -380.6, 294.0),
        (1.303, 120.6, 169.3, -47.7),
        (1.840, 141.3, 146.8, -31.5),
        (2.471, 202.7, 104.7, -17.0),
        (3.210, 342.7, 18.7, 0.0),
        (4.038, 352.2, 18.7, 0.0),
        (7.111, 433.9, -2.4, 0.75),
        (8.331, 629.0, 30.9, 0.0),
        (10.0, 701.2, 25.2, 0.0),
    ]
)


def absorption(energy: Array) -> Array:
    """Sigma [cm^2 per hydrogen atom] at `energy` keV; the last range goes on above 10 keV, where hardly any is left."""
    row = np.minimum(np.searchsorted(CROSS_SECTION[:, 0], energy, side="right"), len(CROSS_SECTION) - 1)
    zeroth, first, second = CROSS_SECTION[row, 1:].T.reshape(3, *energy.shape)
    return (zeroth + first * energy + second * energy**2) / energy**3 * 1e-24


def bremsstrahlung(energy: Array, temperature: Array | float) -> Array:
    """Photon flux g(u) exp(-u) / E, u = E / kT, of gas at `temperature` kT; both in keV."""
    from scipy.special import k0e  # exp(z) K_0(z), which does not underflow

    ratio = energy / temperature
    return math.sqrt(3) / math.pi * k0e(ratio / 2) * np.exp(-ratio) / energy


def energy_edges(low: float, high: float, bins: int) -> Array:
    """[bins + 1] edges of bins of equal width in log E, keV.

    Raises:
        ValueError: the energies do not increase, or there is no bin.
    """
    if not 0.1 <= low < high <= 20 or bins < 2:
        raise ValueError(f"expected 0.1 <= low < high <= 20 keV and at least 2 bins, got {low}, {high} and {bins}")
    return np.geomspace(low, high, bins + 1)


def _shapes(energy: Array, count: int, random: np.random.Generator) -> Array:
    """[count, E] flux at `energy` [E] of as many sources, the first half thermal; of unit mean logarithm."""
    redshift = random.uniform(0, 0.3, (count, 1))
    emitted = energy * (1 + redshift)
    half = count // 2
    temperature = np.exp(random.uniform(math.log(0.8), math.log(12), (half, 1)))
    continuum = bremsstrahlung(emitted[:half], temperature)
    # Of hydrogen-like and helium-like ions less is left the hotter the gas; a scatter stands for abundances.
    for line in LINES.values():
        strength = np.exp(random.normal(-2.5, 0.8, (half, 1))) * np.exp(-(((temperature / (2 * line)) ** 0.5 - 1) ** 2))
        continuum = continuum + strength * bremsstrahlung(np.array(line), temperature) * _line(emitted[:half], line)
    power_law = emitted[half:] ** -random.normal(1.8, 0.3, (count - half, 1))
    width = 0.15 * random.exponential(1, (count - half, 1)) * (random.random((count - half, 1)) < 0.5)  # keV
    power_law = power_law * (1 + width * _line(emitted[half:], FLUORESCENCE) / (WIDTH * math.sqrt(2 * math.pi)))
    flux = np.concatenate([continuum, power_law])
    flux = flux / np.exp(np.log(flux * energy**REFERENCE_INDEX).mean(1, keepdims=True))
    column = 10 ** random.uniform(20, 22, (count, 1))  # atoms per cm^2
    return flux * np.exp(-column * absorption(energy))


def _line(energy: Array, centre: float) -> Array:
    """A Gaussian of height one."""
    return np.exp(-0.5 * ((energy - centre) / WIDTH) ** 2)


def _average(edges: Sequence[float] | Array) -> tuple[Array, Array]:
    """Energies [bins, FINE] inside of each bin, and their weights, of sum one."""
    low, high = np.asarray(edges)[:-1, None], np.asarray(edges)[1:, None]
    inside = low + (high - low) * (np.arange(FINE) + 0.5) / FINE
    return inside, np.full(inside.shape, 1 / FINE)


def xray_spectra(*, count: int = 4_000, bins: int = 24, low: float = 0.5, high: float = 7.0, seed: int = 0) -> Dataset:
    """`count` spectra in `bins` bins from `low` to `high` keV, a tenth of which is held out; class 0 is thermal."""
    inside, weight = _average(energy_edges(low, high, bins))
    random = np.random.default_rng(seed)
    flux = _shapes(inside.ravel(), count, random).reshape(count, bins, FINE)
    unit = (inside**-REFERENCE_INDEX * weight).sum(1)
    values = np.log((flux * weight).sum(2) / unit) + random.normal(0, 1, (count, 1))
    spectra = torch.from_numpy(values.astype(np.float32))
    kind = (torch.arange(count) >= count // 2).long()
    train, held_out, split = parted(count)
    return Dataset(
        name="xray-spectra",
        train=spectra[train],
        held_out=spectra[held_out],
        train_labels=kind[train],
        held_out_labels=kind[held_out],
        split=split,
        source=f"simulated: absorbed bremsstrahlung with lines, and power laws; {bins} bins of {low:g} to {high:g} keV",
        licence="none needed: computed",
    )
