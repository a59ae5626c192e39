r"""Networks with the preconditioning of EDM (Karras et al. 2022, arXiv 2206.00364, table 1).

For x + sigma eps and data of standard deviation d, with e^2 = sigma^2 + d^2,

    x^ = c_skip (x + sigma eps) + c_out F(c_in (x + sigma eps), c_noise),
    c_skip = d^2 / e^2,   c_out = sigma d / e,   c_in = 1 / e,   c_noise = log(sigma) / 4.

The network's own state is taken to be what F is given: a = 1 / e and b = sigma / e.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffusion.imported.base import ImportedDenoiser, OwnLevel
from diffusion.schedule import Schedule, edm

__all__ = ["EDMDenoiser", "edm_denoiser"]


class EDMDenoiser(ImportedDenoiser):
    """x^ of a network F under EDM's preconditioning."""

    def __init__(
        self, network: nn.Module, sigma_data: float = 0.5, sigma_min: float = 0.002, sigma_max: float = 80.0
    ) -> None:
        """`sigma_data` is d; `sigma_min` and `sigma_max` bound the levels that the network was trained on."""
        super().__init__(network)
        if not 0 < sigma_min < sigma_max or not sigma_data > 0:
            raise ValueError(
                f"EDM needs 0 < sigma_min < sigma_max and sigma_data > 0, got {sigma_min}, {sigma_max} and {sigma_data}"
            )
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """See `ImportedDenoiser.log_snr_range`."""
        return -math.log(self.sigma_max), -math.log(self.sigma_min)

    def own_schedule(self, num_steps: int) -> Schedule:
        """See `ImportedDenoiser.own_schedule`."""
        return edm(num_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def own_level(self, level: Tensor) -> OwnLevel:
        """See `ImportedDenoiser.own_level`."""
        sigma = (-level).exp()
        spread = (sigma.square() + self.sigma_data**2).sqrt()
        return OwnLevel(-0.25 * level, 1 / spread, sigma / spread)

    def estimate(self, state: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `ImportedDenoiser.estimate`."""
        return self.sigma_data**2 * alpha * state + self.sigma_data * sigma * output


def edm_denoiser(
    event_shape: tuple[int, ...],
    data_std: float,
    *,
    network: Mapping[str, Any],
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> EDMDenoiser:
    """The kind "edm": `network` describes F (`diffusion.registry`)."""
    from diffusion.registry import make_network  # which imports this module

    return EDMDenoiser(make_network(network, event_shape), sigma_data, sigma_min, sigma_max)
