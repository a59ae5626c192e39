r"""Denoisers whose network knows a noise level by a time, and a state by a scale, of its own.

The network was trained on a s_own = a x + b eps at its own levels (a, b), with a time that stands for them. Whatever
schedule it is asked on, s = alpha x + sigma eps holds as much of x as s_own does where the signal-to-noise ratios
agree, and then one is a multiple of the other:

    l = log(alpha / sigma) = log(a / b),    s_own = (a / alpha) s = (b / sigma) s.

So a kind of network is a map from l to (time, a, b) and the closed form of x^ from (s_own, output, a, b). It is the
same x^ on variance-preserving, variance-exploding and straight schedules, to rounding.

A network says nothing of levels it was not trained on. Where the schedule is noisier or cleaner, it is asked at the
nearest level that it knows: of pure noise, s_own is that noise at the level's standard deviation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.kernel import expand
from diffusion.schedule import Schedule

__all__ = ["PURE_NOISE", "ImportedDenoiser", "OwnLevel", "log_snr", "variance_preserving"]

PURE_NOISE = -20.0  # the log-SNR that stands for minus infinity: alpha / sigma = 2e-9


@dataclass(frozen=True, slots=True)
class OwnLevel:
    """A noise level as a network knows it, all [N] float64."""

    time: Tensor
    """What the network is given for its level."""
    alpha: Tensor
    """Signal level a of its own states."""
    sigma: Tensor
    """Noise level b of its own states."""


class ImportedDenoiser(nn.Module, ABC):
    """x^ of a network(state [N, *D], time [N]) -> [N, *D] that was trained elsewhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    @abstractmethod
    def log_snr_range(self) -> tuple[float, float]:
        """Log-SNR of the noisiest and of the cleanest level that the network was trained on."""

    def nearest(self, level: Tensor) -> Tensor:
        """The log-SNR in `log_snr_range` next to `level` [N]."""
        return level.clamp(*self.log_snr_range)

    @abstractmethod
    def own_schedule(self, num_steps: int) -> Schedule:
        """A chain of `num_steps` on the levels that the network was trained on, as its own library would space it."""

    @abstractmethod
    def own_level(self, level: Tensor) -> OwnLevel:
        """The network's time and levels at log-SNR `level` [N] float64, which is within `log_snr_range`."""

    @abstractmethod
    def estimate(self, state: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x^ [N, *D] from the network's `output` at its own `state`, both [N, *D], and its own levels [N, 1, ...]."""

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor, measurement: Tensor | None = None) -> Tensor:
        """See `diffusion.denoiser.Denoiser`; y = `measurement` [N, *Y] is for a network that was given eyes for it."""
        alpha, sigma = alpha.double(), sigma.double()
        level = self.nearest(log_snr(alpha, sigma))
        own = self.own_level(level)
        # Of the two, the quotient that cannot be 0 / 0.
        factor = torch.where(level > 0, own.alpha / alpha, own.sigma / sigma)
        own_state = expand(factor, state) * state
        seen = () if measurement is None else (measurement,)
        output: Tensor = self.network(own_state, own.time.to(state), *seen)
        return self.estimate(own_state, output, expand(own.alpha, state), expand(own.sigma, state))


def log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """[N] log(alpha / sigma) in float64, at least `PURE_NOISE`."""
    return (alpha.double() / sigma.double()).log().clamp_min(PURE_NOISE)


def variance_preserving(level: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (a, b) [N] with a^2 + b^2 = 1 at log-SNR `level` [N]."""
    return torch.sigmoid(2 * level).sqrt(), torch.sigmoid(-2 * level).sqrt()
