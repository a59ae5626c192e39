r"""Energies as inverse problems: sampling from an unnormalised density by way of a Gaussian base process.

The prior is N(0, s^2 I) with its exact denoiser, and the "likelihood" turns it into the target,

    log p(y | x) = log rho(x) - log N(x; 0, s^2 I),    so that Z = integral of rho(x) dx,

whatever s is. Trajectory balance on the base process is relative trajectory balance with this prior (Sendera et al.
2024, arXiv 2402.05098, have the benchmark problems). There is no measurement: y is a single zero.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffusion.denoiser import GaussianDenoiser
from diffusion.kernel import normal_log_prob
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.problem import Classes, ExactPosterior, InverseProblem

__all__ = ["DifferentiatedEnergy", "Energy", "EnergyRatio", "energy_problem"]


class Energy(Protocol):
    """An unnormalised log density."""

    def __call__(self, value: Tensor) -> Tensor:
        """[N] log rho(x) in nats for x = `value` [N, D]; differentiable by autograd."""
        ...


@runtime_checkable
class DifferentiatedEnergy(Protocol):
    """An energy that knows its own gradient; the others are differentiated by autograd in float64."""

    def gradient(self, value: Tensor) -> Tensor:
        """[N, D] of log rho(x) with respect to x = `value` [N, D]."""
        ...


class EnergyRatio(nn.Module):
    """log rho(x) - log N(x; 0, base_std^2 I); y is ignored."""

    measurement_shape: tuple[int, ...] = (1,)

    def __init__(self, energy: Energy, base_std: float) -> None:
        super().__init__()
        self.energy, self.base_std = energy, base_std

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N] for x = `value` [N, D], computed in float64: far out two large numbers are subtracted."""
        wide = value.double()
        base = normal_log_prob(wide, torch.zeros_like(wide), wide.new_full((len(wide),), self.base_std))
        return (self.energy(wide) - base).to(value)

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, D] of `log_prob`."""
        if isinstance(self.energy, DifferentiatedEnergy):
            return self.energy.gradient(value) + value / self.base_std**2
        with torch.enable_grad():
            leaf = value.detach().double().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.energy(leaf).sum(), leaf)
        return (gradient + leaf.detach() / self.base_std**2).to(value)


def energy_problem(
    name: str,
    energy: Energy,
    dim: int,
    *,
    base_std: float,
    num_steps: int,
    schedule: str,
    start_std: float | None = None,
    exact: ExactPosterior | None = None,
    classes: Classes | None = None,
) -> InverseProblem:
    """The problem of sampling rho in `dim` dimensions from N(0, base_std^2 I), in `num_steps` steps.

    `start_std` is the standard deviation of s_0, `base_std` if not given. A smaller one leaves out noise levels at
    which nothing is decided about x yet; the chain of the base process ends in N(0, base_std^2 I) all the same.
    """
    start_std = base_std if start_std is None else start_std
    if not (base_std > 0 and start_std > 0):
        raise ValueError(f"base_std and start_std must be positive, got {base_std} and {start_std}")
    denoiser = GaussianDenoiser(torch.zeros(dim, dtype=torch.float64), base_std**2)
    levels = make_schedule(schedule, num_steps, scale=start_std)
    return InverseProblem(
        name=name,
        prior=Prior(denoiser, levels, (dim,), denoiser.denoising_variance, base_std),
        likelihood=EnergyRatio(energy, base_std),
        measurements=torch.zeros(1, 1),
        exact=() if exact is None else (exact,),
        classes=classes,
    )
