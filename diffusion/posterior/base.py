r"""What every posterior form shares: transitions of the prior shifted by a control.

    q(s_k+1 | s_k, y) = N(m_k + std_k u_k(s_k, y), std_k^2 I),    z_k = (s_k+1 - m_k) / std_k,
    log q - log p = z_k . u_k - |u_k|^2 / 2,

which does not subtract two large numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from diffusion.kernel import expand
from diffusion.prior import Prior

__all__ = ["GuidanceForm", "Guide", "LikelihoodGradient", "MarginalGradient", "Posterior", "bounded", "log_ratio"]


class LikelihoodGradient(Protocol):
    """The gradient of a differentiable log-likelihood with respect to x."""

    def __call__(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, *D] gradient of log p(y | x) at x = `value` [N, *D] for `measurement` [N, *Y]."""
        ...


class MarginalGradient(Protocol):
    """The gradient of a likelihood that allows for an error of x."""

    def __call__(self, value: Tensor, measurement: Tensor, variance: Tensor) -> Tensor:
        """[N, *D] gradient with respect to m of log p(y | m) at m = `value`, x being N(m, `variance` [N] I)."""
        ...


GuidanceForm = Literal["gradient", "shift", "repeated", "repeated-shift", "variational"]
"""gradient: that of log p(y | x^(s)) with respect to s. shift: by how much y moves x^, see `diffusion.newton`.
repeated: by how much x^ moves when the state itself is moved towards y and its x^ estimated anew, some times over.
repeated-shift: both, by how much x^ moves when the state does by shifts, and is shifted at last. variational: by how
much the estimate of x under an approximation of the posterior differs from x^."""


class Guide(Protocol):
    """What y says about a state, at the cost of a pass through the denoiser or of some: see `InverseProblem.guide`."""

    def __call__(self, state: Tensor, step: Tensor, measurement: Tensor) -> tuple[Tensor, Tensor]:
        """(x^, guidance), both [N, *D], at `state` [N, *D] and index `step` [N], y = `measurement` [N, *Y]."""
        ...


def log_ratio(noise: Tensor, control: Tensor) -> Tensor:
    """[N] log q - log p of transitions with z = `noise` and u = `control`, both [N, *D]."""
    return ((noise - 0.5 * control) * control).flatten(1).sum(1)


def bounded(value: Tensor, limit: float) -> Tensor:
    """`value` [N, *D] scaled so that its root mean square r over *D becomes r / sqrt(1 + (r / limit)^2)."""
    square = value.flatten(1).double().square().mean(1)  # in float64, as the square of an exploding one overflows
    return value * expand((1 + square / limit**2).rsqrt(), value)


class Posterior(nn.Module, ABC):
    """A trainable control on top of a frozen prior.

    The prior is kept out of the module tree, so that it is in neither `parameters()` nor the checkpoint.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self._prior = (prior,)
        self.compute_dtype: torch.dtype | None = None
        """What the network multiplies in; None: the dtype of its weights."""

    @property
    def prior(self) -> Prior:
        """The frozen prior that the control acts on."""
        return self._prior[0]

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever `mode` is: dropout would make the log-density ratio noisy."""
        return super().train(False)

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that `control` runs, which take nearly all of its time."""

    def compile_networks(self) -> None:
        """Has torch.compile fuse what `networks` do from now on, for batches of any size; values stay what they are."""
        for network in self.networks:
            network.compile(dynamic=True)

    def autocast(self, device: torch.device) -> torch.autocast:
        """For the network alone: likelihoods, the prior and log-densities need more digits than bfloat16 has."""
        return torch.autocast(device.type, self.compute_dtype, enabled=self.compute_dtype is not None)

    @property
    def uses_guidance(self) -> bool:
        """Whether `control` uses the guidance of the problem; it computes it if not given."""
        return False

    @property
    def sees_measurement(self) -> bool:
        """Whether `control` depends on y; otherwise the posterior can be that of one measurement only."""
        return True

    @property
    def differentiable(self) -> bool:
        """Whether autograd knows the derivative of `control` with respect to the state."""
        return True

    @abstractmethod
    def control(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """[N, *D] u at `state` [N, *D], index `step` [N], prior estimate `denoised` [N, *D], `measurement` [N, *Y]."""

    def log_ratio(
        self,
        next_state: Tensor,
        state: Tensor,
        step: Tensor,
        denoised: Tensor,
        measurement: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """[N] log q(s_k+1 | s_k, y) - log p(s_k+1 | s_k), nats."""
        mean = self.prior.mean(state, step, denoised)
        noise = (next_state - mean) / expand(self.prior.std[step], state)
        return log_ratio(noise, self.control(state, step, denoised, measurement, guidance))
