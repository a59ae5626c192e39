r"""`path_kl`: the reverse KL through the reparametrised chain (Zhang and Chen 2022, arXiv 2111.15141; Vargas et al.
2023, 2302.13834).

    KL(q || posterior) - log Z = E[ sum_k |u_k(s_k)|^2 / 2 - beta log p(y | x) ],
    s_k+1 = m_k(s_k) + std_k (u_k(s_k) + xi_k),    xi_k ~ N(0, I),

differentiated through all states. It rolls out itself, so the trajectories that it is given say only which measurements
to learn from; the graph of all T steps is in memory at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.posterior import Posterior
from envs.problem import InverseProblem
from learner.batch import PathBatch
from learner.gradient import GradientPlan, LossOutput
from learner.objectives.base import Objective

__all__ = ["PathKL"]


class PathKL(Objective):
    """Pathwise gradient of KL(q || posterior)."""

    def __init__(self, problem: InverseProblem, posterior: Posterior) -> None:
        """For `posterior` on `problem`.

        Raises:
            ValueError: the likelihood has no gradient, or the posterior's control uses it, of which the derivative with
                respect to the state is not known.
        """
        super().__init__()
        if not problem.differentiable:
            raise ValueError(
                f"objective path_kl needs the gradient of the likelihood, which {type(problem.likelihood).__name__} "
                "does not have; take vargrad or rtb"
            )
        if not posterior.differentiable:
            raise ValueError(
                "objective path_kl differentiates the control with respect to the state, which it cannot where the "
                "control uses likelihood gradients; set posterior.likelihood_gradient to none"
            )
        self._problem = (problem,)

    def accumulate(self, posterior: Posterior, batch: PathBatch, beta: float, plan: GradientPlan) -> LossOutput:
        """See `Objective.accumulate`; there are no residuals, as the trajectories are not those given."""
        generator = torch.Generator(batch.states.device).manual_seed(plan.seed)
        start = self._problem[0].prior.sample_base(len(batch), generator).to(batch.states)
        noise = torch.randn(batch.states[:, 1:].shape, generator=generator, dtype=start.dtype, device=start.device)
        loss = self.cost(posterior, start, noise, batch.measurement, beta).mean() / plan.ranks.size
        loss.backward()
        return LossOutput(plan.ranks.total(loss), None, None)

    def cost(self, posterior: Posterior, start: Tensor, noise: Tensor, measurement: Tensor, beta: float) -> Tensor:
        """[B] float64, what the expectation above is of, with graph, for s_0 = `start` and xi = `noise` [B, T, *D]."""
        problem = self._problem[0]
        prior, state = problem.prior, start
        cost = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        for index in range(prior.num_steps):
            step = torch.full((len(state),), index, device=state.device)
            denoised = prior.denoiser(state, prior.alpha[step], prior.sigma[step])
            control = posterior.control(state, step, denoised, measurement)
            cost = cost + 0.5 * control.flatten(1).double().square().sum(1)
            state = prior.mean(state, step, denoised) + prior.std[index].to(state) * (control + noise[:, index])
        gradient = problem.gradient
        assert gradient is not None
        pull = gradient(state.detach(), measurement)
        # The value of the log-likelihood with the gradient that the likelihood itself gives.
        value = problem.log_likelihood_of(state.detach(), measurement).double()
        linear = (pull * (state - state.detach())).flatten(1).double().sum(1)
        return cost - beta * (value + linear)
