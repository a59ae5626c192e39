r"""`adjoint_matching`: regression on the lean adjoint (Domingo-Enrich et al. 2025, arXiv 2409.08861).

    loss = (1 / B) sum_i sum_k |u_k(s_ik) + std_k a_ik+1|^2 / 2,
    a_T = -beta grad_x log p(y | x),    a_k = (dm_k / ds_k)^T a_k+1,

along trajectories of q, without a gradient through them. The adjoint of the whole chain has a term more, the
derivative of u_k times (u_k + std_k a_k+1). At the optimum that has mean zero given s_k, so this regression has the
same fixed point as the pathwise gradient, also in discrete time, without its graph. It holds for trajectories of q,
so actors have to be on-policy and replay short.

The optimum with a fixed s_0 ~ N(0, sigma_0^2 I) is the posterior only if s_0 tells nothing of x (`memoryless`):
otherwise its paths would have to be tilted at their start too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.kernel import expand
from diffusion.path import stacked_transitions
from diffusion.posterior import Posterior, log_ratio
from diffusion.prior import Prior
from envs.problem import InverseProblem
from learner.batch import PathBatch
from learner.gradient import GradientPlan, LossOutput
from learner.objectives.base import Objective, possible
from learner.objectives.vargrad import group_mean
from learner.ranks import whole_batch

__all__ = ["AdjointMatching", "correlation_of_start", "lean_adjoint"]

MEMORYLESS = 0.05  # correlation of s_0 and x up to which the start counts as telling nothing


class AdjointMatching(Objective):
    """Least squares of the control on the adjoint."""

    def __init__(self, problem: InverseProblem) -> None:
        """For `problem`.

        Raises:
            ValueError: the likelihood has no gradient, or the prior's s_0 is correlated with x.
        """
        super().__init__()
        if not problem.differentiable:
            raise ValueError(
                "objective adjoint_matching needs the gradient of the likelihood, which "
                f"{type(problem.likelihood).__name__} does not have; take vargrad or rtb"
            )
        correlation = correlation_of_start(problem.prior)
        if correlation > MEMORYLESS:
            raise ValueError(
                "objective adjoint_matching needs a prior whose s_0 tells nothing of x (memoryless), but their "
                f"correlation is {correlation:.3f}, more than {MEMORYLESS}; take a zero-terminal-SNR schedule"
            )
        self._problem = (problem,)

    def accumulate(self, posterior: Posterior, batch: PathBatch, beta: float, plan: GradientPlan) -> LossOutput:
        """See `Objective.accumulate`; the residual is that of VarGrad."""
        problem, count, steps = self._problem[0], len(batch), batch.num_steps
        prior = problem.prior
        adjoint = beta * lean_adjoint(problem, batch.states, batch.measurement)
        total, ratios = torch.zeros((), dtype=torch.float64), []
        for row, step in stacked_transitions(count, steps, plan.limits.network):
            state, denoised = batch.states[row, step], batch.denoised[row, step]
            guidance = None if batch.guidance is None else batch.guidance[row, step]
            control = posterior.control(state, step, denoised, batch.measurement[row], guidance)
            std = expand(prior.std[step], state)
            loss = 0.5 / (count * plan.ranks.size) * (control + std * adjoint[row, step]).double().square().sum()
            loss.backward()
            total += loss.detach().cpu()
            noise = (batch.states[row, step + 1] - prior.mean(state, step, denoised)) / std
            ratios.append(log_ratio(noise, control.detach()))
        log_ratios = torch.cat(ratios).reshape(count, steps).double().sum(1)
        log_likelihood = possible(plan.ranks.gather(batch.log_likelihood.double()))
        delta = plan.ranks.gather(log_ratios) - beta * log_likelihood
        group = whole_batch(plan.ranks, batch, with_paths=False).group
        centre = group_mean(delta, torch.ones_like(delta), group)
        return LossOutput(plan.ranks.total(total), delta - centre[group], log_ratios)


def correlation_of_start(prior: Prior) -> float:
    """Correlation of an element of s_0 with that of x, for x of the standard deviation `data_std`."""
    signal, noise = float(prior.alpha[0]) * prior.data_std, float(prior.sigma[0])
    return signal / (signal**2 + noise**2) ** 0.5


def lean_adjoint(problem: InverseProblem, states: Tensor, measurement: Tensor) -> Tensor:
    """[B, T, *D] a_1 ... a_T at beta = 1 along `states` [B, T+1, *D], y = `measurement` [B, *Y]."""
    prior, gradient = problem.prior, problem.gradient
    assert gradient is not None
    value = -gradient(states[:, -1], measurement)
    adjoint = [value]
    for index in range(prior.num_steps - 1, 0, -1):
        step = torch.full((len(states),), index, device=states.device)
        pulled = prior.pull_back(states[:, index], step, lambda denoised, value=value: value)[1]  # type: ignore[misc]
        a, b = prior.state_coefficient[index].to(value), prior.denoised_coefficient[index].to(value)
        value = a * value + b * pulled
        adjoint.append(value)
    return torch.stack(adjoint[::-1], dim=1)
