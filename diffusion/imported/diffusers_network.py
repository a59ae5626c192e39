r"""Networks that were trained with a DDPM or DDIM scheduler of diffusers.

Their levels are the T training steps t of a variance-preserving chain, a_t^2 = alphas_cumprod[t]; between two steps
time is interpolated in the log-SNR. With the network's output o,

    epsilon:       x^ = (s_own - b o) / a,
    v_prediction:  x^ = a s_own - b o          (Salimans and Ho 2022, arXiv 2202.00512),
    sample:        x^ = o,

and x^ is clipped where the scheduler does (clip_sample): the chain is that of DDPM, and of DDIM with eta = 1 and
use_clipped_model_output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.imported.base import PURE_NOISE, ImportedDenoiser, OwnLevel, variance_preserving
from diffusion.imported.diffusers_unet import diffusers_unet
from diffusion.schedule import Schedule

__all__ = ["DiscreteDenoiser", "discrete_denoiser", "training_levels"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class DiscreteDenoiser(ImportedDenoiser):
    """x^ of a network on a grid of training steps."""

    levels: Tensor

    def __init__(
        self, network: nn.Module, levels: Tensor, prediction: str = "epsilon", clip: float | None = None
    ) -> None:
        """`levels` [T] float64 is the log-SNR of every training step; x^ is clipped to [-`clip`, `clip`]."""
        super().__init__(network)
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction type {prediction!r}; expected one of {', '.join(PREDICTIONS)}")
        if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()):
            raise ValueError("the signal-to-noise ratio of a training grid must fall over its two or more steps")
        if prediction == "epsilon" and float(levels[-1]) <= PURE_NOISE:
            raise ValueError(
                "a network that predicts epsilon says nothing of x where there is noise alone, which is the last step "
                "of this training grid (rescale_betas_zero_snr); expected v_prediction or sample"
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        self.prediction, self.clip = prediction, clip
        self.register_buffer("levels", levels.double())

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """See `ImportedDenoiser.log_snr_range`."""
        return float(self.levels[-1]), float(self.levels[0])

    def nearest(self, level: Tensor) -> Tensor:
        """See `ImportedDenoiser.nearest`; without a copy from the device."""
        return level.clamp(self.levels[-1], self.levels[0])

    def own_level(self, level: Tensor) -> OwnLevel:
        """See `ImportedDenoiser.own_level`."""
        rising, last = self.levels.flip(0), len(self.levels) - 1
        above = torch.searchsorted(rising, level).clamp(1, last)
        low, high = rising[above - 1], rising[above]
        time = last - (above - 1 + (level - low) / (high - low))
        return OwnLevel(time, *variance_preserving(level))

    def estimate(self, state: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `ImportedDenoiser.estimate`."""
        if self.prediction == "epsilon":
            denoised = (state - sigma * output) / alpha
        elif self.prediction == "v_prediction":
            denoised = alpha * state - sigma * output
        else:
            denoised = output
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def own_schedule(self, num_steps: int) -> Schedule:
        """See `ImportedDenoiser.own_schedule`: training steps, evenly spaced, the first and the last among them."""
        count = len(self.levels)
        if not 1 <= num_steps <= count:
            raise ValueError(f"the training grid has {count} steps, got num_steps {num_steps}")
        return self.schedule(torch.linspace(count - 1, 0, num_steps, dtype=torch.float64).round().long())

    def schedule(self, steps: Tensor) -> Schedule:
        """The chain that goes through the training `steps` [K], noisiest first, and then to x."""
        levels = self.levels[steps].cpu()
        alpha, sigma = variance_preserving(levels)
        alpha = torch.where(levels <= PURE_NOISE, 0.0, alpha)
        return Schedule(torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, sigma.new_zeros(1)]))


def training_levels(alphas_cumprod: Tensor) -> Tensor:
    """[T] log-SNR of training steps whose squared signal levels are `alphas_cumprod` [T], float64."""
    return (0.5 * torch.logit(alphas_cumprod.double())).clamp_min(PURE_NOISE)


def discrete_denoiser(
    event_shape: tuple[int, ...],
    data_std: float,
    *,
    config: Mapping[str, Any],
    num_train_timesteps: int,
    prediction: str,
    clip: float | None = None,
) -> DiscreteDenoiser:
    """The kind "diffusers": a `UNet2DModel` of `config` on a training grid that comes with its weights."""
    placeholder = torch.linspace(1.0, -1.0, num_train_timesteps, dtype=torch.float64)
    return DiscreteDenoiser(diffusers_unet(event_shape, config=config), placeholder, prediction, clip)
