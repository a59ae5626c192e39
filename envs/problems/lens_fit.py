r"""A first model of a lens by least squares: what is subtracted from an image, and by what mass it is lensed.

The light of the lens is a sum of elliptical Gaussians of `WIDTHS`, concentric and of one shape (Cappellari 2002, arXiv
astro-ph/0201430); the source is one of Sersic's ellipses, lensed by an isothermal ellipsoid with shear. Brightnesses
enter linearly and are solved for, not negative, at each trial of the rest (variable projection).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from torch import Tensor

from envs.operators.lensing import LensedImage, deflection

__all__ = ["WIDTHS", "LensFit", "fit_lens", "lens_light", "read_lens_fit"]

WIDTHS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.7, 3.0)
"""Standard deviations of the Gaussians, arcsec, along the mean of both axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LensFit:
    """A lens, its light and where its source is."""

    lens: tuple[float, ...]
    """[7] `LENS_PARAMETERS`."""
    light_shape: tuple[float, ...]
    """[4] centre of its light, x and y (arcsec), and the two ellipticities."""
    light: tuple[float, ...]
    """[8] central brightness of each Gaussian, in the unit of the image."""
    source: tuple[float, ...]
    """[6] centre of the source, x and y, its two ellipticities, half-light radius and index; lengths in arcsec."""
    brightness: float
    """Of the source at its half-light radius, in the unit of the image."""
    reduced_chi2: float
    """Mean square of what is left, in standard deviations of the noise."""

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_lens_fit(path: Path) -> LensFit:
    """The fit in a JSON file as `LensFit.write` makes it.

    Raises:
        ValueError: it is no such file, or numbers are missing, too many or not finite.
    """
    sizes = {"lens": 7, "light_shape": 4, "light": len(WIDTHS), "source": 6}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in found.items()
        }
        fit = LensFit(**numbers)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be a fit of a lens in JSON, as LensFit.write makes it: {error}") from None
    for name, size in (sizes | {"brightness": 1, "reduced_chi2": 1}).items():
        value = getattr(fit, name)
        given = value if name in sizes else (value,)
        fine = isinstance(given, tuple) and all(isinstance(each, int | float) and math.isfinite(each) for each in given)
        if not fine or len(given) != size:
            raise ValueError(f"{path}: {name} must be {size} finite {'numbers' if size > 1 else 'number'}, got {value}")
    return fit


def lens_light(camera: LensedImage, fit: LensFit) -> Tensor:
    """[pixels, pixels] the light of the lens as the camera sees it, float64."""
    parts = _gaussians(camera, torch.tensor(fit.light_shape, dtype=torch.float64))
    return (torch.tensor(fit.light, dtype=torch.float64)[:, None, None] * parts).sum(0)


def fit_lens(camera: LensedImage, image: Tensor, noise_std: Tensor, seen: Tensor, start: tuple[float, ...]) -> LensFit:
    """The fit of `image` [H, W] where `seen` [H, W], of noise `noise_std` [H, W], from a first guess.

    `start` has the Einstein radius, and x and y of the source, all in arcsec.
    """
    first = np.array(
        [start[0], 0.05, 0.05, 0, 0, 0.01, 0.01, 0, 0, 0.05, 0.05, start[1], start[2], 0.05, 0.05, 0.15, 1.0]
    )
    low = np.array(
        [0.1, *[-0.5] * 2, *[-0.3] * 2, *[-0.2] * 2, *[-0.3] * 2, *[-0.5] * 2, *[-2.0] * 2, *[-0.6] * 2, 0.02, 0.4]
    )
    scale = np.array(
        [0.1, *[0.05] * 2, *[0.03] * 2, *[0.02] * 2, *[0.02] * 2, *[0.05] * 2, *[0.1] * 2, *[0.1] * 2, 0.05, 0.3]
    )
    high = np.where(low < 0, -low, np.where(low == 0.4, 4.0, np.where(low == 0.02, 0.6, 5.0)))
    target = (image / noise_std)[seen].double().numpy()

    def solved(trial: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        parts = _parts(camera, torch.from_numpy(trial))
        matrix = (parts / noise_std)[:, seen].numpy().T
        amplitudes, _ = nnls(matrix, target)
        return amplitudes, matrix @ amplitudes - target

    found = least_squares(lambda trial: solved(trial)[1], first, bounds=(low, high), x_scale=scale, diff_step=1e-5)
    amplitudes, residual = solved(found.x)
    best = tuple(float(f"{value:.5g}") for value in found.x)
    return LensFit(
        lens=best[:7],
        light_shape=best[7:11],
        light=tuple(float(f"{value:.5g}") for value in amplitudes[:-1]),
        source=best[11:],
        brightness=float(f"{amplitudes[-1]:.5g}"),
        reduced_chi2=float(f"{np.square(residual).mean():.4g}"),
    )


def _parts(camera: LensedImage, trial: Tensor) -> Tensor:
    """[9, pixels, pixels] images of each of the lens's Gaussians, and of the lensed source."""
    x, y = camera.points()
    bent_x, bent_y = (angle[0] for angle in deflection(x, y, trial[None, :7], camera.slope))
    radius, index = trial[15], trial[16]
    distance = _distance(x - bent_x, y - bent_y, trial[11:15])
    source = (-(2 * index - 1 / 3) * ((distance / radius) ** (1 / index) - 1)).exp()
    return torch.cat([_gaussians(camera, trial[7:11]), camera.observed(source[None])])


def _gaussians(camera: LensedImage, shape: Tensor) -> Tensor:
    distance = _distance(*camera.points(), shape)
    widths = torch.tensor(WIDTHS, dtype=torch.float64)[:, None]
    return camera.observed((-0.5 * (distance / widths).square()).exp())


def _distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """Elliptical radius around the centre and with the ellipticities `shape` [4]: that of a circle of the same area."""
    ellipticity = torch.hypot(shape[2], shape[3]).clamp(1e-6, 0.9)
    ratio, angle = (1 - ellipticity) / (1 + ellipticity), 0.5 * torch.atan2(shape[3], shape[2])
    right, up = x - shape[0], y - shape[1]
    along, across = right * angle.cos() + up * angle.sin(), up * angle.cos() - right * angle.sin()
    return (ratio * along.square() + across.square() / ratio).sqrt()
