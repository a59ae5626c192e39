r"""The `control` form: a small network for u beside the frozen prior.

    u_k = F(s_k, x^_k, g_k, y; k) / sqrt(d) + c_k g_k,    g_k = std_k grad_x log p(y | x) at x = x^_k,

with one learned gain c_k per step. F's last layer and every c_k start at zero, so u = 0: the posterior starts as the
prior. The idea of the likelihood gradient as a feature with a learned gain is that of Zhang and Chen 2022
(arXiv 2111.15141) and Vargas et al. 2023 (2302.13834), here evaluated at the prior's denoised estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.kernel import expand
from diffusion.network import MLP, UNet
from diffusion.posterior.base import LikelihoodGradient, Posterior
from diffusion.prior import Prior

__all__ = ["ControlPosterior"]

MAX_GUIDE_RMS = 10.0  # far from the data a gradient can be arbitrarily long; its direction still tells


class ControlPosterior(Posterior):
    """u from an MLP (vectors) or a U-Net (images [C, H, W])."""

    def __init__(
        self,
        prior: Prior,
        measurement_shape: tuple[int, ...],
        gradient: LikelihoodGradient | None = None,
        network: str = "mlp",
        hidden: int = 256,
        depth: int = 3,
    ) -> None:
        """`gradient` None leaves the feature out; `hidden` is the MLP's width or the U-Net's first channel count."""
        super().__init__(prior)
        self._gradient = gradient
        shape, features = prior.event_shape, 2 if gradient is None else 3
        dim = torch.Size(shape).numel()
        self._scale = dim**-0.5  # an output of order one is then a control of about one nat, in any dimension
        self.network: MLP | UNet
        if network == "mlp":
            inputs = features * dim + torch.Size(measurement_shape).numel()
            self.network = MLP(inputs, dim, hidden, depth)
        elif network == "unet":
            if len(shape) != 3:
                raise ValueError(f"a U-Net needs x of shape [C, H, W], got {shape}")
            self.network = UNet(features * shape[0], shape[0], channels=(hidden, 2 * hidden, 2 * hidden))
        else:
            raise ValueError(f"unknown network {network!r}; expected 'mlp' or 'unet'")
        for parameter in self.network.head.parameters():
            nn.init.zeros_(parameter)
        self.gain = nn.Parameter(torch.zeros(prior.num_steps))

    def control(self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor) -> Tensor:
        """See `Posterior.control`."""
        prior = self.prior
        spread = (prior.alpha[step].square() * prior.data_std**2 + prior.sigma[step].square()).sqrt()
        inputs = [state / expand(spread, state), denoised / prior.data_std]
        guide = None
        if self._gradient is not None:
            guide = self._guide(step, denoised, measurement)
            inputs.append(guide)
        level = step.to(state) * (20.0 / prior.num_steps) - 10.0
        if isinstance(self.network, MLP):
            inputs.append(measurement.to(state))
            flat = torch.cat([value.flatten(1) for value in inputs], dim=1)
            control = self._scale * self.network(flat, level).reshape(state.shape)
        else:
            control = self._scale * self.network(torch.cat(inputs, dim=1), level)
        return control if guide is None else control + expand(self.gain[step], state) * guide

    @torch.no_grad()
    def _guide(self, step: Tensor, denoised: Tensor, measurement: Tensor) -> Tensor:
        assert self._gradient is not None
        guide = expand(self.prior.std[step], denoised) * self._gradient(denoised, measurement)
        rms = guide.flatten(1).square().mean(1).sqrt()
        return guide * expand((MAX_GUIDE_RMS / rms.clamp_min(1e-12)).clamp_max(1.0), guide)
