r"""Flow-matching networks (Lipman et al. 2023, arXiv 2210.02747): a velocity along straight paths.

Between x and noise eps lies s_own = (1 - r) x + r eps; the levels are a = 1 - r and b = r. Two conventions are in use:

    data at time 1 (papers):              time = 1 - r,   v = ds/dtime = x - eps,   x^ = s_own + r v,
    data at time 0 (diffusers and others): time = r,      v = ds/dtime = eps - x,   x^ = s_own - r v.

Some networks are given their time in thousandths: `time_scale` 1000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.imported.base import PURE_NOISE, ImportedDenoiser, OwnLevel
from diffusion.schedule import Schedule, flow

__all__ = ["FlowDenoiser", "flow_denoiser"]


class FlowDenoiser(ImportedDenoiser):
    """x^ of a network that estimates the velocity v."""

    def __init__(self, network: nn.Module, data_at: int, time_scale: float = 1.0) -> None:
        """The state is x at time `data_at`, 0 or 1; the network is given `time_scale` times the time."""
        super().__init__(network)
        if data_at not in (0, 1):
            raise ValueError(f"data_at must be 0 or 1, the time at which the state is x, got {data_at!r}")
        if not time_scale > 0:
            raise ValueError(f"time_scale must be positive, got {time_scale}")
        self.data_at, self.time_scale = data_at, time_scale

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """See `ImportedDenoiser.log_snr_range`: all levels."""
        return PURE_NOISE, -PURE_NOISE

    def own_schedule(self, num_steps: int) -> Schedule:
        """See `ImportedDenoiser.own_schedule`."""
        return flow(num_steps)

    def own_level(self, level: Tensor) -> OwnLevel:
        """See `ImportedDenoiser.own_level`."""
        signal, noise = torch.sigmoid(level), torch.sigmoid(-level)
        return OwnLevel(self.time_scale * (signal if self.data_at else noise), signal, noise)

    def estimate(self, state: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `ImportedDenoiser.estimate`."""
        return state + sigma * output if self.data_at else state - sigma * output


def flow_denoiser(
    event_shape: tuple[int, ...],
    data_std: float,
    *,
    network: Mapping[str, Any],
    data_at: int,
    time_scale: float = 1.0,
) -> FlowDenoiser:
    """The kind "flow": `network` describes v (`diffusion.registry`)."""
    from diffusion.registry import make_network  # which imports this module

    return FlowDenoiser(make_network(network, event_shape), data_at, time_scale)
