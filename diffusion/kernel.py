r"""Gaussian kernels between the indices of a schedule, with `sample` and `log_prob` apart.

Noising, from any cleaner index c to a noisier index n (n < c in sampling order):

    q(s_n | s_c) = N(r s_c, (sigma_n^2 - r^2 sigma_c^2) I),   r = alpha_n / alpha_c.

Denoising, one step k -> k+1, given an estimate x^ of x (Ho et al. 2020, arXiv 2006.11239, eq. 7):

    N(a_k s_k + b_k x^, std_k^2 I),
    a_k = r sigma_k+1^2 / sigma_k^2,   b_k = alpha_k+1 w_k / sigma_k^2,   beta~_k = sigma_k+1^2 w_k / sigma_k^2,
    w_k = sigma_k^2 - r^2 sigma_k+1^2,   r = alpha_k / alpha_k+1.

The standard deviation adds what is not known of x (Bao et al. 2022, arXiv 2201.06503):

    std_k^2 = beta~_k + b_k^2 v_k,   v_k = E |x - x^(s_k)|^2 / d,

which is the best isotropic choice, positive at every step, the last included. For data of variance h^2 in every
direction v_k = h^2 sigma_k^2 / (alpha_k^2 h^2 + sigma_k^2); h = 1 is DDPM's "large" variance, h -> 0 its "small" one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.schedule import Schedule

__all__ = ["DenoisingCoefficients", "NoisingKernel", "expand", "normal_log_prob", "normal_sample"]

LOG_2PI = math.log(2 * math.pi)


def expand(value: Tensor, like: Tensor) -> Tensor:
    """[N] values shaped to multiply [N, *D], in the dtype and on the device of `like`."""
    return value.to(like).reshape(-1, *([1] * (like.ndim - 1)))


def normal_sample(mean: Tensor, std: Tensor, generator: torch.Generator | None) -> Tensor:
    """A draw of N(mean, std^2 I) for mean [N, *D] and std [N]."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + expand(std, mean) * noise


def normal_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[N] log N(value; mean, std^2 I) in nats, summed over the event dimensions, for value [N, *D] and std [N]."""
    scaled = ((value - mean) / expand(std, value)).flatten(1)
    dim = scaled.shape[1]
    return -0.5 * scaled.square().sum(1) - dim * (std.to(value).log() + 0.5 * LOG_2PI)


class DenoisingCoefficients:
    """a_k, b_k, std_k and the uncertainty sqrt(v_k) of every denoising transition of a schedule, float64 [T]."""

    def __init__(self, schedule: Schedule, denoising_variance: Tensor) -> None:
        """`denoising_variance` [T] is v_k, the mean squared error per dimension of x^ at index k."""
        variance = denoising_variance.to(torch.float64)
        if variance.shape != (schedule.num_steps,) or not bool((variance >= 0).all()):
            smallest = f", smallest value {float(variance.min())}" if variance.numel() else ""
            raise ValueError(
                f"denoising_variance must be [{schedule.num_steps}] and non-negative, "
                f"got shape {tuple(variance.shape)}{smallest}"
            )
        ratio = schedule.alpha[:-1] / schedule.alpha[1:]
        noise, next_noise = schedule.sigma[:-1].square(), schedule.sigma[1:].square()
        added = noise - ratio.square() * next_noise  # variance of q(s_k | s_k+1)
        self.state = ratio * next_noise / noise
        self.denoised = schedule.alpha[1:] * added / noise
        self.std = (next_noise * added / noise + self.denoised.square() * variance).sqrt()
        self.uncertainty = variance.sqrt()
        if not bool((self.std > 0).all()):
            raise ValueError("every transition needs a positive standard deviation; raise the denoising variance")


class NoisingKernel:
    """q(s_n | s_c) for any two indices n < c, and whole noising paths from x."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def moments(self, clean: int, noisy: int) -> tuple[float, float]:
        """(r, standard deviation) of q(s_noisy | s_clean)."""
        if not 0 <= noisy < clean <= self.schedule.num_steps:
            raise ValueError(
                f"noising goes from a later to an earlier index in 0..{self.schedule.num_steps}, got {clean} -> {noisy}"
            )
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        ratio = float(alpha[noisy] / alpha[clean])
        return ratio, math.sqrt(float(sigma[noisy] ** 2) - ratio**2 * float(sigma[clean] ** 2))

    def sample(self, state: Tensor, clean: int, noisy: int, generator: torch.Generator | None = None) -> Tensor:
        """[N, *D] draw of s_noisy given s_clean = `state`."""
        ratio, std = self.moments(clean, noisy)
        return normal_sample(ratio * state, torch.full((len(state),), std, device=state.device), generator)

    def log_prob(self, noised: Tensor, state: Tensor, clean: int, noisy: int) -> Tensor:
        """[N] log q(s_noisy = `noised` | s_clean = `state`)."""
        ratio, std = self.moments(clean, noisy)
        return normal_log_prob(
            noised, ratio * state, torch.full((len(state),), std, dtype=torch.float64, device=state.device)
        )

    def sample_path(self, clean: Tensor, generator: torch.Generator | None = None, last: int | None = None) -> Tensor:
        """[N, K+1, *D] a noising path s_0..s_K that ends in s_K = `clean` [N, *D]; K = `last`, T if None."""
        states = [clean]
        for index in range(self.schedule.num_steps if last is None else last, 0, -1):
            states.append(self.sample(states[-1], index, index - 1, generator))
        return torch.stack(states[::-1], dim=1)

    def path_log_prob(self, states: Tensor, first: int = 0) -> Tensor:
        """[N, K] log q(s_k | s_k+1) of every noising transition of s_first, s_first+1, ... = `states` [N, K+1, *D]."""
        terms = [
            self.log_prob(states[:, index], states[:, index + 1], first + index + 1, first + index)
            for index in range(states.shape[1] - 1)
        ]
        return torch.stack(terms, dim=1)
