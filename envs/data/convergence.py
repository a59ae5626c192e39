r"""Maps of convergence: their power spectrum, in pixels too, and a simulated one.

A pixel is the mean over its width d. With the window W(l) of a pixel its power is

    P(l) = d^-2 sum_m |W(l + 2 pi m / d)|^2 C(|l + 2 pi m / d|),

C(l) in steradian being the power spectrum of the sky.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.data.location import data_file
from envs.data.readers import read_fits, read_npz
from envs.data.shear_maps import FOLDER, JAX_LENSING

__all__ = ["KAPPA_TNG_SCALE", "convergence_spectrum", "kappa_tng", "lognormal_power", "pixel_power"]

KAPPA_TNG_SCALE = 0.29  # arcmin per pixel
ALIASES = 3  # on each side of a frequency; the rest is 0.3 % of the power where it is most


def convergence_spectrum(multipole: Tensor) -> Tensor:
    """C(l) of the convergence, in steradian, for sources as far as COSMOS's galaxies.

    A fit to the theory spectrum that goes with the simulations kappaTNG (Osato, Liu and Haiman 2021, MNRAS 502, 5593),
    to 4 % for l of 30 to 60,000.
    """
    large = (1 + (multipole / 37.69) ** 2.783) ** -0.4611
    return 3.655e-8 * large * (1 + (multipole / 6214) ** 2.170) ** -0.4392


def pixel_power(size: int, width: float, spectrum: str | None = None) -> Tensor:
    """[size, size] float64 P of pixels of `width` radians; its mean is the variance of a pixel.

    Frequencies are in the order of `torch.fft.fft2`.

    `spectrum` is an npy file of l (ascending) and C(l) in steradian, [2, K], instead of `convergence_spectrum`; between
    these points it is a power law, and beyond them goes on as one.

    Raises:
        ValueError: no such file, or one that holds something else.
    """
    whole = torch.arange(-ALIASES, ALIASES + 1, dtype=torch.float64)
    cycles = torch.fft.fftfreq(size, dtype=torch.float64)[:, None] + whole  # [size, aliases], per pixel
    window = torch.sinc(cycles).square()
    length = 2 * math.pi / width * (cycles[:, None, :, None].square() + cycles[None, :, None, :].square()).sqrt()
    if spectrum is None:
        power = convergence_spectrum(length)
    else:
        power = _interpolated(Path(spectrum), length.clamp_min(math.pi / (size * width)))
    return (power * window[:, None, :, None] * window[None, :, None, :]).sum((2, 3)) / width**2


def _interpolated(path: Path, length: Tensor) -> Tensor:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; it must be an npy of l and C(l), [2, K]")
    table = read_npz(path)
    if table.ndim != 2 or table.shape[0] != 2 or table.shape[1] < 2:
        raise ValueError(f"{path} must hold l and C(l), [2, K], got shape {list(table.shape)}")
    if not (np.isfinite(table).all() and (table > 0).all() and (np.diff(table[0]) > 0).all()):
        raise ValueError(f"{path} must hold positive finite numbers, l ascending")
    known, power = torch.from_numpy(np.log(table.astype(float)))
    row = torch.searchsorted(known, length.log()).clamp(1, len(known) - 1)
    slope = (power[row] - power[row - 1]) / (known[row] - known[row - 1])
    return (power[row - 1] + slope * (length.log() - known[row - 1])).exp()


def lognormal_power(power: Tensor, lowest: float) -> Tensor:
    """[n, n] power of the Gaussian field under a lognormal one of power `power` and least value -`lowest`.

    Correlations are those of log(1 + xi / lowest^2). Of some frequencies the result can be below zero, as no lognormal
    field has every power: these get a ten-thousandth of the mean.
    """
    correlation = torch.fft.ifft2(power).real
    found = torch.fft.fft2((correlation / lowest**2).log1p()).real
    return found.clamp_min(1e-4 * float(found.mean()))


def kappa_tng() -> Tensor:
    """[360, 360] float64 convergence of one simulated field of kappaTNG, 0.29 arcmin a pixel, less its mean.

    Raises:
        MissingDataError: the file is not on this machine, or astropy is not installed.
    """
    field = torch.from_numpy(read_fits(data_file(FOLDER, "ktng_kappa360v2.fits", source=JAX_LENSING))[0]).double()
    return field - field.mean()
