r"""`galaxy-field` without diffusion: the posterior of the chain's prior by HMC and by a tempered population.

The prior's chain is Gaussian and diagonal in frequency, so its own power is known: with the gain of the exact denoiser,
g_k = alpha_k P / (alpha_k^2 P + sigma_k^2), the recursion  v_k+1 = (a_k + b_k g_k)^2 v_k + std_k^2  from sigma_0^2
ends at the variance of x_f under the chain. A posterior trained on it is compared with the same prior, step for step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.field_denoiser import FieldDenoiser, hartley
from diffusion.prior import Prior
from envs import InverseProblem

__all__ = ["chain_power", "whitened"]


def chain_power(prior: Prior) -> Tensor:
    """[H, W] float64 E |x_f|^2 of the ends of the chain of a Gaussian field."""
    if not isinstance(prior.denoiser, FieldDenoiser):
        raise TypeError(f"the prior must be a Gaussian field, got one of a {type(prior.denoiser).__name__}")
    power = prior.denoiser.power
    variance = torch.full_like(power, float(prior.sigma[0]) ** 2)
    for step in range(prior.num_steps):
        alpha, sigma = float(prior.alpha[step]), float(prior.sigma[step])
        gain = alpha * power / (alpha**2 * power + sigma**2)
        slope = float(prior.state_coefficient[step]) + float(prior.denoised_coefficient[step]) * gain
        variance = slope**2 * variance + float(prior.std[step]) ** 2
    return variance


def whitened(problem: InverseProblem, power: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The field x [N, 1, H, W] and log p(y | x) [N] of the first measurement as functions of z [N, H W] ~ N(0, I)."""
    root, measurement = power.sqrt(), problem.measurements[:1].double()

    def field(position: Tensor) -> Tensor:
        return hartley(root * position.reshape(len(position), 1, *root.shape))

    def log_likelihood(position: Tensor) -> Tensor:
        return problem.likelihood.log_prob(field(position), measurement.expand(len(position), -1))

    return field, log_likelihood
