r"""What gas of a round cluster of galaxies shows of itself: the Sunyaev-Zeldovich effect and X-rays, of its profiles.

    y = sigma_T / (m_e c^2) integral P dl,    I = w^2 / (4 pi (1 + z)^3) integral n^2 Lambda(kT) dl,    kT = P / n,

n (cm^-3) and P (keV cm^-3) being density and pressure of the electrons, and w^2 the solid angle of a pixel (sr), so
that I are photons per cm^2 and s. Lambda (photons cm^3 / s) is the bremsstrahlung of hydrogen and helium within the
observed band, 6.84e-38 Z^2 n n_i T^-1/2 g exp(-h nu / kT) erg / s / cm^3 / Hz (Rybicki and Lightman 1979, eq. 5.14),
without lines.

x [2, K] is log n and log P at K radii of equal ratios, each less that of a reference cluster
(`envs.data.cluster_profiles`), and linear in log r between and beyond them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.data.cluster_profiles import HYDROGEN, MPC, knots, reference
from envs.data.xray_spectra import bremsstrahlung

__all__ = ["UNIT", "Compton", "Profiles", "XrayPhotons", "band_emissivity"]

Array = NDArray[np.float64]

THOMSON, ELECTRON = 6.652_458_7e-25, 510.998_95  # cm^2, keV
BREMSSTRAHLUNG, PLANCK, KELVIN = 6.842e-38, 6.626_070e-27, 1.160_451_8e7  # see the module; erg s; K in a keV
HELIUM = (1 - HYDROGEN) / (4 * HYDROGEN)  # atoms for each of hydrogen
IONS = (1 + 4 * HELIUM) / (1 + 2 * HELIUM)  # sum of Z^2 n_i for each electron
UNIT = 1e-5
"""Of the SZ map: y of a massive cluster is some of these."""
SHELLS, INNERMOST, OUTERMOST = 96, 0.01, 4.0  # Mpc; so many are right to 1 % or so, and the SZ signal ends within
COLDEST, HOTTEST, TABLE = 0.05, 100.0, 400  # keV, and how many temperatures Lambda is worked out at


class Profiles(nn.Module):
    """Density and pressure in thin shells, of x."""

    weights: Tensor
    """[S, K] of linear interpolation in log r, which goes on beyond the ends."""
    base: Tensor
    """[2, S] logarithms of the reference cluster."""
    edges: Tensor
    """[S + 1] of the shells, Mpc."""

    def __init__(self, radii: int, redshift: float) -> None:
        super().__init__()
        edges = np.geomspace(INNERMOST, OUTERMOST, SHELLS)
        middle = np.concatenate([[INNERMOST / 2], np.sqrt(edges[:-1] * edges[1:])])
        self.edges = torch.from_numpy(np.concatenate([[0.0], edges]))
        known = np.log(knots(radii))
        where = np.log(middle)[:, None]
        row = np.clip(np.searchsorted(known, where[:, 0]) - 1, 0, radii - 2)
        share = (where[:, 0] - known[row]) / (known[row + 1] - known[row])
        weights = np.zeros((SHELLS, radii))
        weights[np.arange(SHELLS), row], weights[np.arange(SHELLS), row + 1] = 1 - share, share
        self.register_buffer("weights", torch.from_numpy(weights))
        self.register_buffer("base", torch.from_numpy(reference(middle, redshift)))

    def forward(self, value: Tensor) -> Tensor:
        """[N, 2, S] log n (cm^-3) and log P (keV cm^-3) of x = `value` [N, 2, K]."""
        return value @ self.weights.to(value).T + self.base.to(value)


class Compton(nn.Module):
    """The SZ map of x in units of 1e-5, for pixels that were seen."""

    matrix: Tensor

    def __init__(self, profiles: Profiles, paths: Tensor) -> None:
        """`paths` [Y, S] through the shells, Mpc."""
        super().__init__()
        self.profiles = profiles
        self.measurement_shape: tuple[int, ...] = (len(paths),)
        self.register_buffer("matrix", paths * (MPC * THOMSON / ELECTRON / UNIT))

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return self.profiles(value)[:, 1].exp() @ self.matrix.to(value).T


class XrayPhotons(nn.Module):
    """Photons per cm^2 and s in the pixels of x that were seen."""

    matrix: Tensor
    emissivity: Tensor

    def __init__(self, profiles: Profiles, paths: Tensor, solid_angle: float, redshift: float, band: Array) -> None:
        """`paths` [Y, S] in Mpc, `solid_angle` of a pixel in sr, `band` the observed energies, keV."""
        super().__init__()
        self.profiles = profiles
        self.measurement_shape: tuple[int, ...] = (len(paths),)
        self.register_buffer("matrix", paths * (MPC * solid_angle / (4 * math.pi * (1 + redshift) ** 3)))
        table = band_emissivity(np.geomspace(COLDEST, HOTTEST, TABLE), band * (1 + redshift))
        self.register_buffer("emissivity", torch.from_numpy(np.log(table)))

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        density, pressure = self.profiles(value).unbind(1)
        place = (pressure - density - math.log(COLDEST)) * ((TABLE - 1) / math.log(HOTTEST / COLDEST))
        place = place.clamp(0, TABLE - 1.001)
        row = place.detach().floor().long()
        table = self.emissivity.to(value)
        cooling = table[row] + (place - row) * (table[row + 1] - table[row])
        return (2 * density + cooling).exp() @ self.matrix.to(value).T


def band_emissivity(temperature: Array, band: Array) -> Array:
    """[T] Lambda in photons cm^3 / s at `temperature` [T] keV, within `band`, the least and the largest energy."""
    middle, weight = np.polynomial.legendre.leggauss(32)
    low, high = np.log(band)
    energy = np.exp(0.5 * (low + high) + 0.5 * (high - low) * middle)
    photons = bremsstrahlung(energy, temperature[:, None]) @ (0.5 * (high - low) * weight * energy)
    return np.asarray(BREMSSTRAHLUNG / PLANCK * IONS / np.sqrt(KELVIN * temperature) * photons)
