r"""Noise schedules in sampling order.

At index k = 0..T the noised variable is

    s_k = alpha_k x + sigma_k eps,   eps ~ N(0, I),

with k = 0 the base distribution (noise) and k = T the clean x (alpha_T = 1, sigma_T = 0). Variance-preserving (VP)
schedules have alpha^2 + (sigma / scale)^2 = 1, where `scale` is the standard deviation of the data, so that data
need not be normalised; variance-exploding (VE) ones have alpha = 1. That of flow matching is a straight line,
alpha = t and sigma = (1 - t) scale.

Sources: VP linear and VE, Song et al. 2021 (arXiv 2011.13456); VP cosine, Nichol and Dhariwal 2021 (2102.09672);
zero terminal SNR, Lin et al. 2024 (2305.08891); EDM's grid, Karras et al. 2022 (2206.00364), eq. 5; flow matching,
Lipman et al. 2023 (2210.02747): a chain on it is the memoryless SDE of Domingo-Enrich et al. 2024 (2409.08861).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "SCHEDULES",
    "Schedule",
    "edm",
    "flow",
    "make_schedule",
    "ve",
    "vp_cosine",
    "vp_linear",
    "zero_terminal_snr",
]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Signal and noise levels of a chain with T transitions."""

    alpha: Tensor
    """[T+1] float64 signal level, non-decreasing, 1 at the end."""
    sigma: Tensor
    """[T+1] float64 noise standard deviation in the units of x, decreasing, 0 at the end."""

    def __post_init__(self) -> None:
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape or len(self.alpha) < 2:
            raise ValueError(
                "alpha and sigma must be two vectors of equal length >= 2, "
                f"got shapes {tuple(self.alpha.shape)} and {tuple(self.sigma.shape)}"
            )
        if self.alpha.dtype != torch.float64 or self.sigma.dtype != torch.float64:
            raise ValueError(f"alpha and sigma must be float64, got {self.alpha.dtype} and {self.sigma.dtype}")
        snr = self.alpha[:-1] / self.sigma[:-1]
        if not bool((self.sigma[:-1] > 0).all()) or not bool((snr.diff() > 0).all()) or float(snr[0]) < 0:
            raise ValueError("the signal-to-noise ratio alpha / sigma must rise strictly from step to step")
        if float(self.alpha[-1]) != 1.0 or float(self.sigma[-1]) != 0.0:
            raise ValueError(
                f"a schedule must end clean (alpha 1, sigma 0), got {float(self.alpha[-1])}, {float(self.sigma[-1])}"
            )

    @property
    def num_steps(self) -> int:
        """Number of transitions T."""
        return len(self.alpha) - 1

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether s_0 holds no signal, so that the exact posterior leaves the base distribution alone."""
        return float(self.alpha[0]) == 0.0


def _times(num_steps: int) -> Tensor:
    """[T+1] diffusion time, from 1 (noise) to 0 (clean)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)


def _variance_preserving(alpha: Tensor, scale: float) -> Schedule:
    if not scale > 0:
        raise ValueError(f"scale must be a positive standard deviation, got {scale}")
    return Schedule(alpha, scale * (1 - alpha.square()).clamp_min(0).sqrt())


def vp_linear(num_steps: int, *, beta_min: float = 0.1, beta_max: float = 20.0, scale: float = 1.0) -> Schedule:
    """alpha(t) = exp(-t^2 (beta_max - beta_min) / 4 - t beta_min / 2) on a uniform grid of t."""
    time = _times(num_steps)
    log_alpha = -0.25 * time.square() * (beta_max - beta_min) - 0.5 * time * beta_min
    return _variance_preserving(log_alpha.exp(), scale)


def vp_cosine(num_steps: int, *, offset: float = 0.008, max_beta: float = 0.999, scale: float = 1.0) -> Schedule:
    """alpha(t) = cos(pi/2 (t + offset) / (1 + offset)), normalised to 1 at t = 0.

    As published, no transition may remove more than `max_beta` of the variance, which leaves a little signal in s_0.
    """
    time = _times(num_steps)
    alpha = torch.cos(0.5 * math.pi * (time + offset) / (1 + offset)).clamp_min(0)
    kept = (alpha[:-1] / alpha[1:]).square().clamp_min(1 - max_beta).sqrt()  # alpha_k / alpha_k+1
    alpha = torch.cat([kept.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])
    return _variance_preserving(alpha, scale)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The VP schedule shifted and stretched so that alpha_0 = 0: s_0 is pure noise, alpha_T stays 1."""
    scale = float((schedule.sigma[:-1].square() / (1 - schedule.alpha[:-1].square())).mean().sqrt())
    preserved = schedule.alpha.square() + (schedule.sigma / scale).square()
    if not math.isfinite(scale) or not torch.allclose(preserved, torch.ones_like(preserved), atol=1e-6):
        raise ValueError("zero_terminal_snr needs a variance-preserving schedule (alpha^2 + sigma^2 constant)")
    first = schedule.alpha[0]
    return _variance_preserving((schedule.alpha - first) / (1 - first), scale)


def ve(num_steps: int, *, sigma_min: float = 0.01, sigma_max: float = 50.0, scale: float = 1.0) -> Schedule:
    """Geometric noise levels from `sigma_max` down to `sigma_min` times `scale`, then 0; alpha = 1 throughout."""
    place = _places("VE", num_steps, sigma_min, sigma_max, scale)
    return _variance_exploding(scale * sigma_max * (sigma_min / sigma_max) ** place)


def edm(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, scale: float = 1.0
) -> Schedule:
    """Noise levels whose `rho`-th roots are evenly spaced, times `scale`, then 0; alpha = 1 throughout."""
    place = _places("EDM", num_steps, sigma_min, sigma_max, scale)
    if not rho > 0:
        raise ValueError(f"EDM needs a positive rho, got {rho}")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _variance_exploding(scale * (first + place * (last - first)) ** rho)


def _places(name: str, num_steps: int, sigma_min: float, sigma_max: float, scale: float) -> Tensor:
    """[T] even spacing from 0, the noisiest level, to 1, the last one before the clean end."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"{name} needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if not scale > 0:
        raise ValueError(f"scale must be a positive standard deviation, got {scale}")
    if num_steps < 2:
        raise ValueError(f"{name} needs num_steps >= 2 (two noise levels and the clean end), got {num_steps}")
    return torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)


def _variance_exploding(sigma: Tensor) -> Schedule:
    return Schedule(torch.ones(len(sigma) + 1, dtype=torch.float64), torch.cat([sigma, sigma.new_zeros(1)]))


def flow(num_steps: int, *, scale: float = 1.0) -> Schedule:
    """Straight: alpha = t and sigma = (1 - t) `scale` on a uniform grid of t from 0 to 1."""
    if not scale > 0:
        raise ValueError(f"scale must be a positive standard deviation, got {scale}")
    noise = _times(num_steps)
    return Schedule(1 - noise, scale * noise)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "vp-linear": vp_linear,
    "vp-cosine": vp_cosine,
    "vp-linear-zero-snr": lambda num_steps, **options: zero_terminal_snr(vp_linear(num_steps, **options)),
    "vp-cosine-zero-snr": lambda num_steps, **options: zero_terminal_snr(vp_cosine(num_steps, **options)),
    "ve": ve,
    "edm": edm,
    "flow": flow,
}


def make_schedule(name: str, num_steps: int, **options: float) -> Schedule:
    """The schedule called `name` with T = `num_steps`; options are those of the function of that name."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; expected one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](num_steps, **options)
