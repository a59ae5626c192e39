r"""Weak lensing on a flat sky: the shear that a map of convergence makes (Kaiser and Squires 1993, ApJ 404, 441).

With l = (l_1, l_2) the frequencies along columns and rows, Fourier transforms of shear and convergence obey

    gamma = D kappa,    D = (l_1^2 - l_2^2 + 2 i l_1 l_2) / |l|^2,    gamma = gamma_1 + i gamma_2,

and D = 0 at l = 0: a constant sheet of mass makes no shear. A map is taken for its own periodic continuation. gamma_1
is positive where images are stretched along the rows of pixels (from column to column), and gamma_2 where they are
along the diagonal on which row and column rise together. Shear and convergence have no unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.field_denoiser import hartley
from envs.operators.base import LinearOperator, Spectrum

__all__ = ["Shear"]


class Shear(LinearOperator):
    """Shear [2, H, W] of the convergence x [1, H, W]; its transpose is the estimate of Kaiser and Squires."""

    multiplier: Tensor
    """[2, H, W] D_1 and D_2 at the frequencies of `torch.fft.fft2`; both real and even, D(-l) = D(l)."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) != 3 or event_shape[0] != 1:
            raise ValueError(f"convergence must be a map [1, H, W], got x of shape {event_shape}")
        super().__init__(event_shape, (2, *event_shape[1:]))
        rows, columns = self.event_shape[1:]
        down = torch.fft.fftfreq(rows, dtype=torch.float64)[:, None]
        right = torch.fft.fftfreq(columns, dtype=torch.float64)[None]
        square = (down.square() + right.square()).clamp_min(1e-30)
        cross = 2 * right * down / square
        # At half a cycle a pixel l and -l are one frequency, where an odd function of l_1 or l_2 has no place.
        if rows % 2 == 0:
            cross[rows // 2] = 0
        if columns % 2 == 0:
            cross[:, columns // 2] = 0
        self.register_buffer("multiplier", torch.stack([(right.square() - down.square()) / square, cross]))

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        transformed = torch.fft.rfft2(value)
        half = self._half(value)
        return torch.fft.irfft2(transformed * half, s=self.event_shape[1:])

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`: the convergence of Kaiser and Squires, if nothing is masked."""
        transformed = torch.fft.rfft2(measurement)
        half = self._half(measurement)
        return torch.fft.irfft2((transformed * half).sum(1, keepdim=True), s=self.event_shape[1:])

    def _half(self, like: Tensor) -> Tensor:
        return self.multiplier[..., : self.event_shape[2] // 2 + 1].to(like)

    def spectrum(self) -> Spectrum:
        """See `LinearOperator`: |D|^2 for what a convergence can make, zero for what it cannot (B modes)."""
        multiplier, shape = self.multiplier, self.measurement_shape
        size = multiplier.square().sum(0)
        unit = torch.where(size > 0, multiplier / size.sqrt().clamp_min(1e-30), torch.tensor([1.0, 0.0])[:, None, None])
        values = torch.cat([size.flatten(), torch.zeros_like(size).flatten()])

        def turned(waves: Tensor, sign: float) -> Tensor:
            along, across = unit.to(waves)
            first, second = waves[:, 0], waves[:, 1]
            return torch.stack([along * first + sign * across * second, along * second - sign * across * first], 1)

        return Spectrum(
            values,
            lambda value: turned(hartley(value), 1.0).flatten(1),
            lambda value: hartley(turned(value.reshape(len(value), *shape), -1.0)),
        )
