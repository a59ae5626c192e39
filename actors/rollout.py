r"""Batched rollouts: s_0 from the base distribution, then T transitions of a controlled and possibly inflated chain.

    s_k+1 = m_k + std_k (u_k + c xi),   xi ~ N(0, I),

with u = 0 for the prior and c = 1 unless the noise is inflated. With z = u + c xi the log-densities follow without
subtracting large numbers, d being the number of dimensions:

    log p = -|z|^2 / 2 - d log std_k - (d / 2) log(2 pi),     log q - log p = z . u - |u|^2 / 2,
    log b - log p = (|z|^2 - |xi|^2) / 2 - d log c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.kernel import LOG_2PI
from diffusion.posterior import log_ratio
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem

__all__ = ["Control", "Rollout", "rollout"]

Control = Callable[..., Tensor]
"""(state [N, *D], step [N], denoised [N, *D], measurement [N, *Y]) -> u [N, *D], as `Posterior.control`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """Tensors of a batch of trajectories; B of them with T transitions in the event shape *D."""

    states: Tensor
    """[B, T+1, *D]."""
    denoised: Tensor
    """[B, T, *D] the prior's estimates of x."""
    guidance: Tensor | None = None
    """[B, T, *D] the guidance of the problem (`InverseProblem.guide`), where it was asked for."""
    log_prior: Tensor
    """[B, T] log p of every transition, nats."""
    log_ratio: Tensor
    """[B, T] log q - log p of every transition, q having the control and the uninflated noise."""
    log_behaviour_ratio: Tensor
    """[B] float64, log b - log p of the whole path, b being what it was drawn from."""
    log_likelihood: Tensor
    """[B] log p(y | x)."""
    measurement_id: Tensor
    """[B] int64, a row of the problem's measurements or a negative number, see `Trajectory`."""
    measurement: Tensor | None = None
    """[B, *Y] y, where it is sent along; needed where `measurement_id` is negative."""
    acceptance: float | None = None
    """Share of proposals that were accepted, for kinds of exploration that propose."""

    @property
    def log_weight(self) -> Tensor:
        """[B] float64, log p(tau) + log p(y | x) - log q(tau): the importance weight of a path drawn from q."""
        return self.log_likelihood.double() - self.log_ratio.double().sum(1)

    def take(self, rows: Tensor) -> Rollout:
        """The trajectories at `rows`."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: value[rows] if isinstance(value, Tensor) else value for name, value in values.items()}
        return Rollout(**values)

    def put(self, rows: Tensor, by: Rollout) -> None:
        """Writes the trajectories `by` over those at `rows`."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value[rows] = getattr(by, field.name)

    def trajectory(
        self,
        uid: NDArray[np.uint64],
        policy_version: int,
        origin: Origin | NDArray[np.uint8],
        *,
        keep_denoised: bool = True,
    ) -> Trajectory:
        """The message for replay; `origin` is that of all trajectories, or [B]."""
        count = len(self.states)
        return Trajectory(
            uid=uid,
            states=self.states.float().cpu().numpy(),
            log_prior=self.log_prior.float().cpu().numpy(),
            log_behaviour_ratio=self.log_behaviour_ratio.float().cpu().numpy(),
            log_likelihood=self.log_likelihood.float().cpu().numpy(),
            measurement_id=self.measurement_id.cpu().numpy(),
            policy_version=np.full(count, policy_version, dtype=np.int64),
            origin=np.full(count, origin, dtype=np.uint8),
            denoised=self.denoised.float().cpu().numpy() if keep_denoised else None,
            guidance=self.guidance.float().cpu().numpy() if keep_denoised and self.guidance is not None else None,
            measurement=None if self.measurement is None else self.measurement.float().cpu().numpy(),
        )


@torch.no_grad()
def rollout(
    problem: InverseProblem,
    control: Control | None,
    measurement_id: Tensor,
    *,
    inflation: float = 1.0,
    generator: torch.Generator | None = None,
    guided: bool = False,
    start: Tensor | None = None,
    first: int = 0,
    noise: Tensor | None = None,
    renewed: Tensor | None = None,
) -> Rollout:
    """One trajectory for every entry of `measurement_id` [B], under `control` (None: the prior).

    `inflation` is c, the factor on the noise of the behaviour; the log-ratio is that of c = 1 all the same.
    `guided` computes the guidance along the path, and hands it to `control` as a fifth argument.
    With `start` [B, *D] the paths leave these states at index `first`, and hold only what follows: T - `first`
    transitions. With `noise` [B, T - `first`, *D] xi is taken from there but where `renewed` [B, *D] is true.
    """
    if not (inflation > 0 and math.isfinite(inflation)):
        raise ValueError(f"inflation must be positive, got {inflation}")
    if (noise is None) != (renewed is None):
        raise ValueError("noise and renewed say together what is drawn anew: give both or neither")
    prior, count = problem.prior, len(measurement_id)
    measurement = problem.measurements[measurement_id]
    state = prior.sample_base(count, generator) if start is None else start
    dim = state[0].numel()
    guided = guided and problem.gradient is not None
    states, estimates, guidance, log_prior, log_ratios = [state], [], [], [], []
    behaviour = torch.zeros(count, dtype=torch.float64, device=state.device)
    for index in range(first, prior.num_steps):
        step = torch.full((count,), index, device=state.device)
        std = float(prior.std[index])
        if guided:
            denoised, pulled = problem.guide(state, step, measurement)
            guidance.append(pulled)
        else:
            denoised = prior.denoised(state, step)
        drawn = torch.randn(state.shape, generator=generator, dtype=state.dtype, device=state.device)
        if noise is not None and renewed is not None:  # given together
            drawn = torch.where(renewed, drawn, noise[:, index - first])
        if control is None:
            shifted = inflation * drawn
            log_ratios.append(torch.zeros(count, device=state.device))
        else:
            u = control(state, step, denoised, measurement, *guidance[-1:])
            shifted = u + inflation * drawn
            log_ratios.append(log_ratio(shifted, u))
        square = shifted.flatten(1).square().sum(1)
        log_prior.append(-0.5 * square - dim * (float(prior.std[index].log()) + 0.5 * LOG_2PI))
        behaviour += 0.5 * (square - drawn.flatten(1).square().sum(1)) - dim * math.log(inflation)
        state = prior.mean(state, step, denoised) + std * shifted
        states.append(state)
        estimates.append(denoised)
    return Rollout(
        states=torch.stack(states, 1),
        denoised=torch.stack(estimates, 1),
        guidance=torch.stack(guidance, 1) if guidance else None,
        log_prior=torch.stack(log_prior, 1),
        log_ratio=torch.stack(log_ratios, 1),
        log_behaviour_ratio=behaviour,
        log_likelihood=problem.log_likelihood(state, measurement_id),
        measurement_id=measurement_id,
    )
