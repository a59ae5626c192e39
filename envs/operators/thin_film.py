r"""Reflectance of thin films on a substrate, light falling on them straight: the method of characteristic matrices.

A film of index n and thickness d has the phase delta = 2 pi n d / lambda. Fields B and C (electric, magnetic) on its
two sides, and the reflectance of all films, in a medium of index n_0 and on a substrate of n_s, are

    (B, C) = [[cos delta, i sin delta / n], [i n sin delta, cos delta]] (B', C'),    (B, C) = (1, n_s) in the substrate,
    R = |(n_0 B - C) / (n_0 B + C)|^2

(Born and Wolf, Principles of Optics, 1.6; Macleod, Thin-Film Optical Filters, chapter 2). Indices are real and the same
at all wavelengths: nothing is absorbed, and 1 - R goes through.

It stands for a simulator: it is numpy in and out, and has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ThinFilms", "reflectance"]


def reflectance(
    thickness: NDArray[np.float64],
    indices: Sequence[float],
    wavelengths: NDArray[np.float64],
    *,
    substrate: float,
    medium: float = 1.0,
) -> NDArray[np.float64]:
    """[N, W] R of films of `thickness` [N, L], the first where the light comes from, at `wavelengths` [W], one unit.

    `indices` [L] are those of the films.
    """
    electric = np.ones((len(thickness), len(wavelengths)), dtype=np.complex128)
    magnetic = substrate * electric
    for film in reversed(range(len(indices))):
        index = indices[film]
        phase = 2 * np.pi * index * thickness[:, film, None] / wavelengths
        cosine, sine = np.cos(phase), 1j * np.sin(phase)
        electric, magnetic = cosine * electric + sine / index * magnetic, index * sine * electric + cosine * magnetic
    found: NDArray[np.float64] = np.abs((medium * electric - magnetic) / (medium * electric + magnetic)) ** 2
    return found


class ThinFilms:
    """The `ForwardOperator` from standardised thicknesses x [N, L] to reflectance [N, W]."""

    def __init__(
        self,
        indices: Sequence[float],
        wavelengths: Sequence[float],
        *,
        substrate: float,
        middle: float,
        scale: float,
    ) -> None:
        """Films of `indices` [L] on `substrate`, at `wavelengths` [W] nm; thicknesses are `middle` + `scale` x, nm."""
        if not indices or not all(index > 0 for index in (*indices, substrate)):
            raise ValueError(f"films and substrate need positive indices, got {[*indices]} on {substrate}")
        if not len(wavelengths) or not all(length > 0 for length in wavelengths):
            raise ValueError(f"wavelengths must be positive, got {[*wavelengths]}")
        self.indices, self.substrate = tuple(indices), substrate
        self.wavelengths = np.array(wavelengths, dtype=np.float64)
        """[W] nm."""
        self._middle, self._scale = middle, scale
        self.measurement_shape: tuple[int, ...] = (len(self.wavelengths),)

    def thickness(self, value: Tensor) -> Tensor:
        """[N, L] nm, of x = `value` [N, L]."""
        return self._middle + self._scale * value

    def __call__(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`: [N, W]."""
        films = self.thickness(value.detach().cpu().double()).numpy()
        found = reflectance(films, self.indices, self.wavelengths, substrate=self.substrate)
        return torch.from_numpy(found).to(value)
