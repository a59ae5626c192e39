r"""Blurring: convolution of every channel with a kernel, by fast Fourier transforms.

    y(r) = sum_s K(s) x(r - s),    s from the kernel's centre.

Beyond the border x is taken for its own periodic continuation ("periodic") or for zero, its edges being no data of a
wider scene ("zero"). Benchmarks that reflect the image at its border differ from both there.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion.field_denoiser import hartley
from envs.operators.base import LinearOperator, Spectrum

__all__ = ["Convolution", "gaussian_kernel", "motion_kernel"]


class Convolution(LinearOperator):
    """Images [C, H, W] convolved with one kernel; the measurement is of the same shape."""

    kernel: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], kernel: Tensor, boundary: Literal["periodic", "zero"] = "periodic"
    ) -> None:
        """`kernel` [h, w] of odd sizes, no larger than the image; with zeros beyond its edges, than twice that."""
        super().__init__(event_shape, event_shape)
        *_, rows, columns = event_shape
        if kernel.ndim != 2 or not all(size % 2 for size in kernel.shape):
            raise ValueError(f"the kernel must be [h, w] with h and w odd, got shape {tuple(kernel.shape)}")
        if boundary not in ("periodic", "zero"):
            raise ValueError(f"boundary must be periodic or zero, got {boundary!r}")
        most = (rows, columns) if boundary == "periodic" else (2 * rows - 1, 2 * columns - 1)
        if kernel.shape[0] > most[0] or kernel.shape[1] > most[1]:
            beyond = "the image, " if boundary == "periodic" else "what light can cross, "
            raise ValueError(f"a kernel of {tuple(kernel.shape)} pixels is larger than {beyond}{most[0]} x {most[1]}")
        self.register_buffer("kernel", kernel.double())
        self._periodic = boundary == "periodic"
        self._centre = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        extra = (0, 0) if self._periodic else (kernel.shape[0] - 1, kernel.shape[1] - 1)
        self._size = (rows + extra[0], columns + extra[1])  # of the transforms

    def _transfer(self, like: Tensor) -> Tensor:
        """Fourier transform of the kernel with its centre at the origin."""
        placed = self.kernel.new_zeros(self._size)
        placed[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        placed = placed.roll((-self._centre[0], -self._centre[1]), (0, 1))
        return torch.fft.rfft2(placed.to(like))

    def _filtered(self, value: Tensor, transfer: Tensor) -> Tensor:
        *_, rows, columns = self.event_shape
        spectrum = torch.fft.rfft2(value, s=self._size)
        return torch.fft.irfft2(spectrum * transfer, s=self._size)[..., :rows, :columns]

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return self._filtered(value, self._transfer(value))

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`: correlation with the kernel."""
        return self._filtered(measurement, self._transfer(measurement).conj())

    def spectrum(self) -> Spectrum:
        """See `LinearOperator`; with the periodic boundary A A^T is diagonal in the Hartley transform.

        That transform, the real part of Fourier's minus the imaginary one, is orthonormal, real and its own inverse;
        the eigenvalues are the squared magnitudes of the kernel's Fourier transform.
        """
        if not self._periodic:
            return super().spectrum()
        shape, like = self.measurement_shape, torch.zeros((), dtype=torch.float64, device=self.kernel.device)
        placed = self.kernel.new_zeros(self._size)
        placed[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        values = torch.fft.fft2(placed.to(like)).abs().square().expand(shape).flatten()

        def analyse(value: Tensor) -> Tensor:
            return hartley(value).flatten(1)

        return Spectrum(values, analyse, lambda value: hartley(value.reshape(len(value), *shape)))


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """[size, size] a Gaussian of standard deviation `std` pixels, sum one; `size` None: to four deviations."""
    if not std > 0:
        raise ValueError(f"the kernel's standard deviation must be positive, got {std}")
    size = 2 * math.ceil(4 * std) + 1 if size is None else size
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the kernel's size must be odd and positive, got {size}")
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    profile = (-0.5 * (offset / std).square()).exp()
    kernel = profile[:, None] * profile
    return kernel / kernel.sum()


def motion_kernel(size: int, seed: int = 0, *, inertia: float = 0.9) -> Tensor:
    """[size, size] the trace of a camera that shakes during the exposure, sum one.

    A random walk whose velocity keeps the share `inertia` of itself a step, scaled to fill the kernel, and spread over
    the nearest four pixels; in the manner of Boracchi and Foi 2012 (doi 10.1109/TIP.2012.2192126).
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"the kernel's size must be odd and at least 3, got {size}")
    if not 0 <= inertia < 1:
        raise ValueError(f"inertia must be within [0, 1), got {inertia}")
    generator, steps = torch.Generator().manual_seed(seed), 64 * size
    push = torch.randn(steps, 2, generator=generator, dtype=torch.float64)
    velocity = torch.zeros(2, dtype=torch.float64)
    path = [torch.zeros(2, dtype=torch.float64)]
    persistence = inertia ** (1 / size)  # a step is a small part of a pixel
    for kick in push:
        velocity = persistence * velocity + kick
        path.append(path[-1] + velocity)
    trace = torch.stack(path)
    trace = trace - 0.5 * (trace.amin(0) + trace.amax(0))
    trace = trace * (0.5 * (size - 1) / trace.abs().max()) + size // 2
    corner = trace.floor().clamp(0, size - 2)
    share = trace - corner
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for down in (0, 1):
        for right in (0, 1):
            weight = (share[:, 0] if down else 1 - share[:, 0]) * (share[:, 1] if right else 1 - share[:, 1])
            place = (corner + torch.tensor([down, right])).long()
            kernel.index_put_((place[:, 0], place[:, 1]), weight, accumulate=True)
    return kernel / kernel.sum()
