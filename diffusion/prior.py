r"""The prior: a frozen diffusion model of x, seen as a Markov chain in sampling order.

    s_0 ~ N(0, sigma_0^2 I),    p(s_k+1 | s_k) = N(m_k(s_k), std_k^2 I),    m_k = a_k s_k + b_k x^(s_k),    x = s_T.

Coefficients: `diffusion.kernel`. The prior is never trained here, and says so when it is handed trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from diffusion.kernel import DenoisingCoefficients, NoisingKernel, expand, normal_log_prob, normal_sample
from diffusion.schedule import Schedule

__all__ = ["KnowsCovariance", "Prior", "PullBack"]


@runtime_checkable
class PullBack(Protocol):
    """A denoiser that knows its own vector-Jacobian product."""

    def pull_back(
        self, state: Tensor, alpha: Tensor, sigma: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `Prior.pull_back`."""
        ...


@runtime_checkable
class KnowsCovariance(Protocol):
    """A denoiser that knows the covariance of x given its state."""

    def covariance_given(
        self, state: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `Prior.covariance_given`."""
        ...


class Prior(nn.Module):
    """A frozen denoiser on a schedule."""

    alpha: Tensor
    sigma: Tensor
    state_coefficient: Tensor
    denoised_coefficient: Tensor
    std: Tensor
    uncertainty: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: Schedule,
        event_shape: tuple[int, ...],
        denoising_variance: Tensor | float | Callable[[Tensor, Tensor], Tensor] = 1.0,
        data_std: float = 1.0,
    ) -> None:
        """Wraps `denoiser` (see `diffusion.denoiser.Denoiser`) for x of shape `event_shape`.

        `denoising_variance` is the mean squared error per dimension of the denoiser: [T] values, or a function of
        (alpha, sigma) [T] that gives them, or a number h^2 that stands for data of that variance in every direction
        (1 gives DDPM's "large" variance for VP schedules).
        `data_std` is the standard deviation of x per dimension, by which networks normalise their inputs.

        Raises:
            ValueError: a parameter of `denoiser` requires a gradient.
        """
        super().__init__()
        for name, parameter in denoiser.named_parameters():
            if parameter.requires_grad:
                raise ValueError(
                    f"the prior must be frozen, but its parameter {name!r} requires a gradient; "
                    "call denoiser.requires_grad_(False) first"
                )
        self.denoiser = denoiser.eval()
        self.schedule = schedule
        self.event_shape = tuple(event_shape)
        self.data_std = data_std
        alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
        if callable(denoising_variance):
            variance = denoising_variance(alpha, sigma)
        elif isinstance(denoising_variance, Tensor):
            variance = denoising_variance
        else:
            variance = denoising_variance * sigma**2 / (alpha**2 * denoising_variance + sigma**2)
        coefficients = DenoisingCoefficients(schedule, variance)
        self.noising = NoisingKernel(schedule)
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)
        self.register_buffer("state_coefficient", coefficients.state, persistent=False)
        self.register_buffer("denoised_coefficient", coefficients.denoised, persistent=False)
        self.register_buffer("std", coefficients.std, persistent=False)
        self.register_buffer("uncertainty", coefficients.uncertainty, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever `mode` is: dropout would make the log-density ratio noisy."""
        return super().train(False)

    @property
    def num_steps(self) -> int:
        """Number of transitions T."""
        return self.schedule.num_steps

    @torch.no_grad()
    def denoised(self, state: Tensor, step: Tensor) -> Tensor:
        """[N, *D] the estimate x^ of x at `state` [N, *D] and index `step` [N] (int64, 0..T-1)."""
        estimate: Tensor = self.denoiser(state, self.alpha[step], self.sigma[step])
        return estimate

    @torch.no_grad()
    def pull_back(self, state: Tensor, step: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(x^, J^T v), both [N, *D]: the estimate of x, and v = `cotangent`(x^) pulled back through J = dx^/ds.

        With the likelihood's gradient as `cotangent` J^T v is the gradient of log p(y | x^(s)) with respect to s
        (Chung et al. 2023, arXiv 2209.14687). A denoiser with a `pull_back` of its own is asked for it; otherwise
        autograd goes through the denoiser, which costs about two more evaluations.
        """
        alpha, sigma = self.alpha[step], self.sigma[step]
        if isinstance(self.denoiser, PullBack):
            return self.denoiser.pull_back(state, alpha, sigma, cotangent)
        with torch.enable_grad():
            leaf = state.detach().requires_grad_(True)
            denoised = self.denoiser(leaf, alpha, sigma)
            (pulled,) = torch.autograd.grad(denoised, leaf, cotangent(denoised.detach()))
        return denoised.detach(), pulled

    @torch.no_grad()
    def covariance_given(self, state: Tensor, step: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x^ [N, *D], and the function v [N, *D] -> Cov(x | s) v.

        Cov(x | s) = (sigma^2 / alpha) J^T for J = dx^/ds. Where the denoiser does not give it by itself every product
        is a `pull_back`, and zero where alpha is.
        """
        alpha, sigma = self.alpha[step], self.sigma[step]
        if isinstance(self.denoiser, KnowsCovariance):
            return self.denoiser.covariance_given(state, alpha, sigma)
        scale = torch.where(alpha > 0, sigma.square() / alpha.clamp_min(torch.finfo(torch.float32).tiny), 0.0)

        def product(vector: Tensor) -> Tensor:
            return expand(scale, state) * self.pull_back(state, step, lambda _: vector)[1]

        return self.denoised(state, step), product

    def mean(self, state: Tensor, step: Tensor, denoised: Tensor) -> Tensor:
        """[N, *D] the mean m_k of the transition that leaves `state`, given the estimate `denoised` of x there."""
        a, b = self.state_coefficient[step], self.denoised_coefficient[step]
        return expand(a, state) * state + expand(b, state) * denoised

    def sample_base(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] draws of s_0 ~ N(0, sigma_0^2 I), float32."""
        noise = torch.randn(count, *self.event_shape, generator=generator, device=self.std.device)
        return float(self.sigma[0]) * noise

    def sample_transition(self, state: Tensor, step: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[N, *D] a draw of s_k+1 given s_k = `state` at index `step` [N]."""
        mean = self.mean(state, step, self.denoised(state, step))
        return normal_sample(mean, self.std[step], generator)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] draws of x, the ends of as many chains."""
        state = self.sample_base(count, generator)
        for index in range(self.num_steps):
            step = torch.full((count,), index, device=state.device)
            state = self.sample_transition(state, step, generator)
        return state

    def log_prob(self, next_state: Tensor, state: Tensor, step: Tensor, denoised: Tensor | None = None) -> Tensor:
        """[N] log p(s_k+1 | s_k), nats."""
        denoised = self.denoised(state, step) if denoised is None else denoised
        return normal_log_prob(next_state, self.mean(state, step, denoised), self.std[step])
