r"""`cluster-profiles`: gas of clusters of galaxies, simulated from published profiles.

Electron pressure (Arnaud et al. 2010, A&A 517, A92) and density (Vikhlinin et al. 2006, ApJ 640, 691) at the radius r,

    P = P_500 P_0 / ((c u)^gamma (1 + (c u)^alpha)^((beta - gamma) / alpha)),    u = r / R_500,
    n^2 ~ (r / r_c)^-a (1 + r^2 / r_c^2)^(a / 2 - 3 b) (1 + r^3 / r_s^3)^(-e / 3),

P_500 = 1.65e-3 E(z)^(8/3) (M_500 / 3e14 M_sun)^(2/3 + 0.12) keV / cm^3, and n scaled to a mass of gas within R_500. The
temperature is kT = P / n. Masses and shapes are drawn; those of which the hydrostatic mass does not rise outwards, or
the gas is more than all mass, or kT leaves 0.5 to 25 keV, are no clusters and drawn again. These are plausible mocks to
learn from, not a simulation of gas.

x [2, K] is log n and log P at K radii, each less that of a reference cluster of 5e14 M_sun (`reference`). Gas is fully
ionised, with 76 % hydrogen and 24 % helium by mass; the universe is flat, with H_0 = 70 km / s / Mpc and 30 % matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from envs.data.dataset import Dataset, parted

__all__ = [
    "MASS_PER_ELECTRON",
    "MASS_PER_PARTICLE",
    "MPC",
    "PROTON",
    "REFERENCE",
    "SOLAR",
    "angular_distance",
    "cluster_profiles",
    "expansion",
    "gas_density",
    "hydrostatic_mass",
    "knots",
    "pressure",
    "radius_500",
    "reference",
]

Array = NDArray[np.float64]

HYDROGEN = 0.76  # by mass
MASS_PER_ELECTRON = 2 / (1 + HYDROGEN)  # mu_e, proton masses
MASS_PER_PARTICLE = 4 / (3 + 5 * HYDROGEN)  # mu, electrons and nuclei, proton masses
HUBBLE, MATTER, LIGHT = 70.0, 0.3, 299_792.458  # km / s / Mpc, of the critical density, km / s
MPC = 3.085_677_6e24  # cm
SOLAR = 1.988_41e33  # g
PROTON = 1.672_621_9e-24  # g
GRAVITY = 6.674_30e-8  # cm^3 / g / s^2
KEV = 1.602_176_6e-9  # erg
CRITICAL = 3 * (HUBBLE * 1e5 / MPC) ** 2 / (8 * math.pi * GRAVITY) * MPC**3 / SOLAR  # today, M_sun / Mpc^3
REFERENCE = {
    "mass": 5e14, "scale": 8.403, "c": 1.177, "gamma": 0.3081, "alpha": 1.0510, "beta": 5.4905,
    "gas": 0.13, "core": 0.12, "cusp": 0.5, "b": 0.65, "outer": 0.75, "e": 1.5,
}  # fmt: skip
"""M_500 in M_sun, the profile of Arnaud et al., and of the gas its share of M_500, r_c and r_s in R_500, a, b and e."""
COLDEST, HOTTEST = 0.5, 25.0  # keV
FINE = 200


def expansion(redshift: float) -> float:
    """E(z), the rate of expansion in units of today's."""
    return math.sqrt(MATTER * (1 + redshift) ** 3 + 1 - MATTER)


def angular_distance(redshift: float) -> float:
    """Mpc by which an angle in radians is multiplied; Simpson's rule is right to 1e-9 here."""
    z = np.linspace(0, redshift, 201)
    rate = 1 / np.sqrt(MATTER * (1 + z) ** 3 + 1 - MATTER)
    weight = np.ones(201)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    return float(LIGHT / HUBBLE * (weight @ rate) * redshift / 600 / (1 + redshift))


def radius_500(mass: Array | float, redshift: float) -> Array | float:
    """R_500 in Mpc, within which the mean density is 500 times the critical one, of M_500 = `mass` in M_sun."""
    return (mass / (500 * 4 / 3 * math.pi * CRITICAL * expansion(redshift) ** 2)) ** (1 / 3)


def pressure(radius: Array, redshift: float, of: Mapping[str, Array | float]) -> Array:
    """[*N, K] electron pressure in keV / cm^3 at `radius` [K] Mpc; `of` as `REFERENCE`, of numbers or [*N, 1]."""
    u = radius / radius_500(of["mass"], redshift) * of["c"]
    unit = 1.65e-3 * expansion(redshift) ** (8 / 3) * (of["mass"] / 3e14) ** (2 / 3 + 0.12)
    shape = u ** of["gamma"] * (1 + u ** of["alpha"]) ** ((of["beta"] - of["gamma"]) / of["alpha"])
    return np.asarray(unit * of["scale"] / shape)


def gas_density(radius: Array, redshift: float, of: Mapping[str, Array | float]) -> Array:
    """[*N, K] electrons per cm^3 at `radius` [K] Mpc; `of` as `REFERENCE`, of numbers or [*N, 1]."""
    edge = radius_500(of["mass"], redshift)

    def shape(r: Array) -> Array:
        core, outer = r / (of["core"] * edge), r / (of["outer"] * edge)
        inner = core ** -of["cusp"] * (1 + core**2) ** (of["cusp"] / 2 - 3 * of["b"])
        return np.asarray(np.sqrt(inner * (1 + outer**3) ** (-of["e"] / 3)))

    share = (np.arange(FINE) + 0.5) / FINE  # of R_500: the mean of u^2 n(u) is the mass within but for 4 pi R^3
    enclosed = (shape(edge * share) * share**2).mean(-1, keepdims=True) * 4 * math.pi * (edge * MPC) ** 3
    electrons = of["gas"] * of["mass"] * SOLAR / (MASS_PER_ELECTRON * PROTON)
    return np.asarray(shape(radius) * electrons / enclosed)


def hydrostatic_mass(radius: Array, temperature: Array, slope: Array) -> Array:
    """Mass within `radius` [K] Mpc in M_sun, -r kT / (G mu m_p) dlogP/dlogr, of gas at rest of `temperature` keV."""
    unit = MPC * KEV / (GRAVITY * MASS_PER_PARTICLE * PROTON * SOLAR)
    return np.asarray(-unit * radius * temperature * slope)


def knots(count: int, inner: float = 0.05, outer: float = 2.0) -> Array:
    """[count] radii in Mpc that profiles are given at, of equal ratios."""
    if count < 3 or not 0 < inner < outer:
        raise ValueError(f"expected at least 3 radii and 0 < inner < outer, got {count}, {inner} and {outer}")
    return np.geomspace(inner, outer, count)


def reference(radius: Array, redshift: float) -> Array:
    """[2, K] log n (cm^-3) and log P (keV cm^-3) of the reference cluster at `radius` [K] Mpc."""
    return np.log([gas_density(radius, redshift, REFERENCE), pressure(radius, redshift, REFERENCE)])


def _drawn(count: int, random: np.random.Generator) -> dict[str, Array]:
    """As `REFERENCE`, [count, 1] each, scattered about it."""

    def normal(mean: float, std: float) -> Array:
        return random.normal(mean, std, (count, 1))

    def uniform(low: float, high: float) -> Array:
        return random.uniform(low, high, (count, 1))

    return {
        "mass": 1e14 * np.exp(uniform(math.log(3), math.log(10))),
        "scale": 8.403 * np.exp(normal(0, 0.1)), "c": 1.177 * np.exp(normal(0, 0.05)),
        "gamma": np.abs(normal(0.3081, 0.15)), "alpha": 1.051 * np.exp(normal(0, 0.05)), "beta": normal(5.4905, 0.2),
        "gas": 0.13 * np.exp(normal(0, 0.1)), "core": uniform(0.06, 0.2), "cusp": uniform(0, 1),
        "b": uniform(0.55, 0.75), "outer": uniform(0.5, 1), "e": uniform(0.5, 3),
    }  # fmt: skip


def cluster_profiles(*, count: int = 2_000, radii: int = 8, redshift: float = 0.3, seed: int = 0) -> Dataset:
    """`count` clusters at `redshift`, log density and log pressure at `radii` radii; a tenth is held out."""
    if not 0.01 <= redshift <= 3:
        raise ValueError(f"redshift must be within 0.01 to 3, got {redshift}")
    radius, random = knots(radii), np.random.default_rng(seed)
    fine = np.geomspace(radius[0], radius[-1], FINE)
    kept: list[Array] = []
    while sum(map(len, kept)) < count:
        of = _drawn(count, random)
        density, push = gas_density(fine, redshift, of), pressure(fine, redshift, of)
        temperature, slope = push / density, np.gradient(np.log(push), np.log(fine), axis=-1)
        mass = hydrostatic_mass(fine, temperature, slope)
        shell = 4 * math.pi * (fine * MPC) ** 3 * density * MASS_PER_ELECTRON * PROTON / SOLAR  # dM_gas / dlog r
        gas = np.cumsum(shell * np.gradient(np.log(fine)), -1)
        real = (np.diff(mass) > 0).all(-1) & (mass > gas).all(-1)
        real &= (temperature > COLDEST).all(-1) & (temperature < HOTTEST).all(-1)
        values = np.log(np.stack([gas_density(radius, redshift, of), pressure(radius, redshift, of)], 1))
        kept.append(values[real] - reference(radius, redshift))
    profiles = torch.from_numpy(np.concatenate(kept)[:count].astype(np.float32))
    train, held_out, split = parted(count)
    return Dataset(
        name="cluster-profiles",
        train=profiles[train],
        held_out=profiles[held_out],
        split=split,
        source=f"simulated: pressure and density of clusters at redshift {redshift:g}, {radii} radii",
        licence="none needed: computed",
    )
