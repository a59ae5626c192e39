r"""How wrong a denoiser is, on average: its mean squared error per dimension against the noise level.

    v(lambda) = E |x - x^(s)|^2 / D,    lambda = log(alpha d / sigma),

d being the standard deviation of x per dimension. It is what the standard deviations of the prior's transitions need
(`diffusion.kernel`). The best denoiser is a function of s / alpha and of sigma / alpha alone, so a table over lambda
serves every schedule; so is `NetworkDenoiser`.

Between its levels the table is interpolated relative to data of variance d^2 in every direction, whose error is
g(lambda) = d^2 / (1 + e^(2 lambda)): log(v / g) is linear in lambda between two levels and constant beyond the last
ones. v then has the right limits, the variance of x in pure noise and sigma^2 / alpha^2 times a constant in none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["LOG_SNR", "DenoisingError", "levels_at", "measure_denoising_error"]

LOG_SNR = tuple(float(level) for level in np.linspace(-6.0, 7.0, 105))
"""The levels of a table: noise from 400 times the data to a thousandth, close enough to interpolate to 0.1 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingError:
    """A table of mean squared errors; called with (alpha, sigma) it is `Prior`'s `denoising_variance`."""

    data_std: float
    """d, in the units of x."""
    log_snr: tuple[float, ...]
    """lambda, increasing."""
    mean_squared: tuple[float, ...]
    """v at each of them, in the square of the units of x, positive."""

    def __post_init__(self) -> None:
        levels, errors = np.asarray(self.log_snr, np.float64), np.asarray(self.mean_squared, np.float64)
        if levels.ndim != 1 or levels.shape != errors.shape or not len(levels) or not (np.diff(levels) > 0).all():
            raise ValueError(
                "log_snr must be increasing and mean_squared have as many numbers, "
                f"got {levels.size} and {errors.size} of them"
            )
        if not (np.isfinite(levels).all() and np.isfinite(errors).all() and (errors > 0).all()):
            raise ValueError("log_snr must be finite, and mean_squared positive and finite")
        if not (self.data_std > 0 and math.isfinite(self.data_std)):
            raise ValueError(f"data_std must be positive, got {self.data_std}")

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[K] float64 v at the levels `alpha`, `sigma` [K]."""
        noise = sigma.double().square()
        signal = alpha.double().square() * self.data_std**2
        level = 0.5 * (signal / noise).log()  # -inf in pure noise, where the table ends before
        table = np.asarray(self.log_snr)
        ratio = np.log(np.asarray(self.mean_squared) * (1 + np.exp(2 * table)) / self.data_std**2)
        found = np.interp(level.cpu().numpy(), table, ratio)
        return torch.from_numpy(found).to(noise).exp() * self.data_std**2 * noise / (signal + noise)


def levels_at(log_snr: Sequence[float] | Tensor, data_std: float) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) [K] float64 of the variance-preserving process at lambda = `log_snr` [K]."""
    level = torch.as_tensor(log_snr, dtype=torch.float64)
    alpha = (1 + (-2 * level).exp()).rsqrt()
    return alpha, data_std * (1 + (2 * level).exp()).rsqrt()


@torch.no_grad()
def measure_denoising_error(
    denoiser: nn.Module,
    clean: Tensor,
    data_std: float,
    log_snr: Sequence[float] = LOG_SNR,
    *,
    seed: int = 0,
    max_rows: int = 512,
) -> DenoisingError:
    """The table of `denoiser` over x = `clean` [N, *D], of the data but not of what it was trained on.

    Every x is noised once at every level, by the same noise at all of them, so that the table is smooth. `max_rows`
    states go through the denoiser at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32).to(clean)
    errors = []
    for alpha, sigma in zip(*levels_at(log_snr, data_std), strict=True):
        total = 0.0
        for x, eps in zip(clean.split(max_rows), noise.split(max_rows), strict=True):
            level, spread = alpha.to(x.device).expand(len(x)), sigma.to(x.device).expand(len(x))
            estimate = denoiser(float(alpha) * x + float(sigma) * eps, level, spread)
            total += float((estimate - x).double().square().sum())
        errors.append(total / clean.numel())
    return DenoisingError(data_std=data_std, log_snr=tuple(log_snr), mean_squared=tuple(errors))
