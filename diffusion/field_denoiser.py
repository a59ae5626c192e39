r"""The exact denoiser of a stationary Gaussian field: periodic images, known by their power spectrum.

In the Hartley transform (the real part of Fourier's minus the imaginary one: orthonormal, real, its own inverse) the
covariance of x is diagonal, with P(f) = E |x_f|^2, so

    x^(s)_f = alpha P / (alpha^2 P + sigma^2) s_f    for x of mean zero.

A transform costs D log D where a dense covariance would cost D^2: ten thousand dimensions are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion.denoiser import MixtureDenoiser
from diffusion.kernel import expand

__all__ = ["FieldDenoiser", "hartley", "power_law"]


def hartley(value: Tensor) -> Tensor:
    """The Hartley transform of `value` over its last two axes; twice it is the identity."""
    transformed = torch.fft.fft2(value, norm="ortho")
    return transformed.real - transformed.imag


def power_law(size: int, slope: float, knee: float) -> Tensor:
    """[size, size] float64 power P(f) ~ (knee^2 + |f|^2)^-slope of mean one, so that x has variance one.

    f is in cycles per image, the zero frequency at [0, 0].
    """
    if size < 4 or not knee > 0:
        raise ValueError(f"size must be at least 4 and knee positive, got {size} and {knee}")
    frequency = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    power = (knee**2 + frequency[:, None].square() + frequency.square()) ** -slope
    return power / power.mean()


class FieldDenoiser(nn.Module):
    """Exact denoiser of a Gaussian field x [1, H, W] of mean zero."""

    power: Tensor

    def __init__(self, power: Tensor) -> None:
        """`power` P [H, W] at the frequencies of `torch.fft.fft2`, positive and even: P(-f) = P(f)."""
        super().__init__()
        power = power.double()
        if power.ndim != 2 or not bool(((power > 0) & torch.isfinite(power)).all()):
            raise ValueError(f"power must be [H, W], positive and finite, got shape {tuple(power.shape)}")
        if not torch.allclose(power, power.flip(0, 1).roll((1, 1), (0, 1)), rtol=1e-6):
            raise ValueError("power must be even, P(-f) = P(f), with the zero frequency at [0, 0]")
        self.register_buffer("power", power)

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `diffusion.denoiser.Denoiser`."""
        return hartley(self._gain(state, alpha, sigma) * hartley(state))

    def as_mixture(self) -> MixtureDenoiser:
        """The same with its covariance [H W, H W] written out, as a mixture of one component."""
        identity = torch.eye(self.power.numel()).to(self.power).reshape(-1, 1, *self.power.shape)
        covariance = hartley(self.power * hartley(identity)).flatten(1)
        return MixtureDenoiser(torch.zeros_like(covariance[:1]), covariance, event_shape=(1, *self.power.shape))

    def pull_back(
        self, state: Tensor, alpha: Tensor, sigma: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(x^, J^T v), see `diffusion.prior.Prior.pull_back`: x^ is linear in s, and J symmetric."""
        gain = self._gain(state, alpha, sigma)
        denoised = hartley(gain * hartley(state))
        return denoised, hartley(gain * hartley(cotangent(denoised)))

    def covariance_given(
        self, state: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x^ and v -> Cov(x | s) v, see `diffusion.prior.Prior.covariance_given`; it is that of any state."""
        level, noise, power = expand(alpha, state), expand(sigma, state).square(), self.power.to(state)
        spread = power * noise / (level.square() * power + noise)
        denoised = hartley(self._gain(state, alpha, sigma) * hartley(state))
        return denoised, lambda vector: hartley(spread * hartley(vector))

    def _gain(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        alpha, sigma, power = expand(alpha, state), expand(sigma, state), self.power.to(state)
        return alpha * power / (alpha.square() * power + sigma.square())

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log density of x = `value` [N, 1, H, W], float64."""
        square = hartley(value.double()).square() / self.power
        return -0.5 * (square.flatten(1).sum(1) + self.power.log().sum() + self.power.numel() * math.log(2 * math.pi))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, 1, H, W] exact draws of x, float64."""
        noise = torch.randn(count, 1, *self.power.shape, generator=generator, dtype=torch.float64)
        return hartley(self.power.sqrt() * noise)

    def denoising_variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[K] exact E |x - x^|^2 / D at levels `alpha`, `sigma` [K]."""
        noise, power = sigma.square()[:, None], self.power.flatten()
        return (power * noise / (alpha.square()[:, None] * power + noise)).mean(1)
