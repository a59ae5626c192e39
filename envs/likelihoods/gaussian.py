r"""Gaussian noise: of one size, of another size in each pixel, or correlated between pixels.

With r = y - A(x) of m numbers and noise covariance R,

    log p(y | x) = -r^T R^-1 r / 2 - log det R / 2 - (m / 2) log(2 pi).

Complex measurements are pairs (real part, imaginary part) along the last axis; a visibility of weight w has a standard
deviation of 1 / sqrt(w) in each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.likelihoods.base import AutogradLikelihood, noiseless
from envs.operators import ForwardOperator, LinearOperator, Spectrum

__all__ = ["CorrelatedGaussianLikelihood", "GaussianLikelihood"]

LOG_TWO_PI = math.log(2 * math.pi)


class GaussianLikelihood(AutogradLikelihood):
    """y = A(x) + sigma * noise, sigma a number or one for each element of y."""

    noise_std: float | Tensor
    """sigma: a number, or [*Y] float64."""

    def __init__(self, operator: ForwardOperator, noise_std: float | Tensor) -> None:
        super().__init__()
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)
        self._spectrum: Spectrum | None = None  # made when it is asked for, and kept
        if not isinstance(noise_std, Tensor):
            if not (noise_std > 0 and math.isfinite(noise_std)):
                raise ValueError(f"noise_std must be a positive finite standard deviation, got {noise_std}")
            self.noise_std = float(noise_std)
            return
        if tuple(noise_std.shape) != self.measurement_shape:
            raise ValueError(
                f"noise_std must be a number or of the measurement's shape {self.measurement_shape}, got shape "
                f"{tuple(noise_std.shape)}"
            )
        wrong = ~((noise_std > 0) & torch.isfinite(noise_std))
        if bool(wrong.any()):
            raise ValueError(
                f"every noise_std must be a positive finite standard deviation, got {int(wrong.sum())} others of "
                f"{noise_std.numel()}; leave elements out that were not measured"
            )
        self.register_buffer("noise_std", noise_std.double())

    def _std(self, like: Tensor) -> float | Tensor:
        return self.noise_std.to(like) if isinstance(self.noise_std, Tensor) else self.noise_std

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`."""
        return (measurement.to(value) - noiseless(self.operator, value)) / self._std(value)

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        residual = self.standardised(value, measurement).flatten(1)
        count = residual.shape[1]
        if isinstance(self.noise_std, Tensor):
            log_std = float(self.noise_std.log().sum())
        else:
            log_std = count * math.log(self.noise_std)
        return -0.5 * residual.square().sum(1) - (log_std + 0.5 * count * LOG_TWO_PI)

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`; A^T R^-1 (y - A x) for a linear operator, autograd otherwise."""
        if not isinstance(self.operator, LinearOperator):
            return super().gradient(value, measurement)
        residual = measurement.to(value) - noiseless(self.operator, value)
        return self.operator.adjoint(residual / self._std(value) ** 2).reshape(value.shape)

    def marginal_gradient(self, value: Tensor, measurement: Tensor, variance: Tensor) -> Tensor:
        """[N, *D] gradient with respect to m of log p(y | m) at m = `value`, x being N(m, v I), v = `variance` [N].

        A^T (v A A^T + S^2)^-1 (y - A m), S the diagonal of sigma: for a linear operator. Where sigma is another one in
        each element it is that of S^-1 A, whose spectrum is dense.
        """
        operator, noise = self.operator, self.noise_std
        assert isinstance(operator, LinearOperator)
        residual, shift = measurement.to(value) - noiseless(operator, value), 1.0
        if isinstance(noise, Tensor):
            operator, residual = _Whitened(operator, noise), residual / noise.to(residual)
        else:
            shift = noise**2
        if self._spectrum is None or self._spectrum.values.device != value.device:
            self._spectrum = operator.spectrum()
        return operator.adjoint(self._spectrum.solve(residual, variance, shift)).reshape(value.shape)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        clean = noiseless(self.operator, value)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        return clean + self._std(clean) * noise


class _Whitened(LinearOperator):
    """S^-1 A, behind which noise is white."""

    def __init__(self, operator: LinearOperator, noise_std: Tensor) -> None:
        super().__init__(operator.event_shape, operator.measurement_shape)
        self.operator, self.noise_std = operator, noise_std

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        seen: Tensor = self.operator(value)
        return seen / self.noise_std.to(seen)

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return self.operator.adjoint(measurement / self.noise_std.to(measurement))


class CorrelatedGaussianLikelihood(AutogradLikelihood):
    """y = A(x) + noise that is stationary over an image y [..., H, W], periodic, and known by its power spectrum.

    P(f) = E |n_f|^2 for the orthonormal Fourier transform n_f of the noise: white noise of standard deviation sigma has
    P = sigma^2. The covariance is diagonal in that transform, so the density costs one of them.
    """

    power: Tensor

    def __init__(self, operator: ForwardOperator, power: Tensor) -> None:
        """`power` [H, W] at the frequencies of `torch.fft.fft2`, even: P(-f) = P(f), as real noise has it."""
        super().__init__()
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)
        if len(self.measurement_shape) < 2 or tuple(power.shape) != self.measurement_shape[-2:]:
            raise ValueError(
                f"power must be [H, W] for a measurement [..., H, W], got {tuple(power.shape)} for "
                f"{self.measurement_shape}"
            )
        power = power.double()
        if not bool(((power > 0) & torch.isfinite(power)).all()):
            raise ValueError(f"power must be positive and finite everywhere, got a least of {float(power.min())}")
        mirrored = power.flip(0, 1).roll((1, 1), (0, 1))
        if not torch.allclose(power, mirrored, rtol=1e-6):
            raise ValueError("power must be even, P(-f) = P(f), with the zero frequency at [0, 0]")
        self.register_buffer("power", power)

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`."""
        residual = measurement.to(value) - noiseless(self.operator, value)
        return torch.fft.ifft2(torch.fft.fft2(residual) / self.power.to(value).sqrt()).real

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        residual = measurement.to(value) - noiseless(self.operator, value)
        power = self.power.to(value)
        square = torch.fft.fft2(residual, norm="ortho").abs().square() / power
        planes = residual[0].numel() // power.numel()
        constant = 0.5 * planes * float(self.power.log().sum()) + 0.5 * residual[0].numel() * LOG_TWO_PI
        return -0.5 * square.flatten(1).sum(1) - constant

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        clean = noiseless(self.operator, value)
        white = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        coloured = torch.fft.fft2(white, norm="ortho") * self.power.to(clean).sqrt()
        return clean + torch.fft.ifft2(coloured, norm="ortho").real
