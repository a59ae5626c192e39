r"""Training-free guidance: controls that follow y without being trained, as behaviour and as baselines.

Each shifts the prior's transition along an approximate score of y, so the guided step is N(m_k + std_k u_k, std_k^2 I)
and its path has the exact log b - log p = sum_k [z_k . u_k - |u_k|^2 / 2]. As proposals they are corrected by it; as
samplers of p(x | y) they are biased, by what the approximations leave out. With x^ = x^(s_k), J = dx^/ds,
r = y - A(x^) and v_k the mean square error per dimension of x^:

    dps      u_k = -(zeta / std_k) grad_s |r|                                   = (zeta / std_k) J^T A'^T r / |r|,
    dps-cla  u_k = -(zeta alpha_k / std_k) grad_s |r|,
    pigdm    u_k = std_k J^T A^T (v_k A A^T + sigma_y^2 I)^-1 r                 ~ std_k grad_s log p(y | s_k).

dps: diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687). zeta multiplies the gradient of the norm
itself, as in the authors' code; algorithm 1 of the paper, a step zeta' / |r| on the gradient of |r|^2, is
zeta = 2 zeta'. Either way the step does not know the noise of y.

dps-cla: y and A(x^) are both noised to the level of s_k, with the same noise, which then cancels: what is left is the
residual sqrt(alpha-bar) (y - A(x^)), and sqrt(alpha-bar) is our alpha_k. A schedule with alpha = 1 (VE) makes no
difference between the two.

pigdm: pseudoinverse-guided diffusion (Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems",
ICLR). p(x | s_k) is taken for N(x^, v_k I), with which y is Gaussian given s_k; the paper's r_t^2 is our v_k, which for
data of unit variance is the same number. Where v_k I is the true covariance it is exactly the score of p(y | s_k), and
then the shift std_k^2 grad log p(y | s_k) is that of the reverse process, to first order in the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.rollout import Control, Rollout, rollout
from diffusion.kernel import expand
from diffusion.posterior import Posterior, bounded
from diffusion.trajectory import Origin
from envs.likelihoods import GaussianLikelihood
from envs.operators import LinearOperator
from envs.problem import InverseProblem

__all__ = ["DiffusionPosteriorSampling", "GuidanceConfig", "GuidedProposal", "PseudoinverseGuidance"]

MAX_CONTROL = 3.0  # root mean square of u: standard deviations of the transition


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceConfig:
    """Guided proposals (kinds `dps`, `dps-cla`)."""

    scale: float = 0.1
    """zeta, the length of a step along the gradient of |y - A(x^)|, in the units of x squared over those of y. The
    sum over all steps is what has to suit the problem: published values of 0.3 to 1 are for images and 1000 steps."""

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"actor.guidance.scale must be positive and finite, got {self.scale}")


class DiffusionPosteriorSampling:
    """The `Control` of dps, or with `noised` that of dps-cla."""

    def __init__(self, problem: InverseProblem, scale: float, *, noised: bool = False) -> None:
        """For a Gaussian likelihood with any differentiable operator; `scale` is zeta."""
        self._likelihood = _gaussian_likelihood(problem, "dps")
        prior, gradient = problem.prior, problem.gradient
        assert gradient is not None  # a Gaussian likelihood has one
        self._prior, self._gradient, self._calls = prior, gradient, problem.calls
        self._given = problem.guidance == "gradient"
        # grad_s log p(y | x^(s)) = -(|r| / sigma_y^2) grad_s |r|: the guidance holds the gradient of the norm.
        self._factor = scale * float(self._likelihood.noise_std) ** 2 * (prior.alpha if noised else 1.0) / prior.std

    def __call__(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """[N, *D] u; `guidance` is used where it is the gradient of log p(y | x^(s)) with respect to s."""
        likelihood = self._likelihood
        if guidance is None or not self._given:
            guidance = self._prior.pull_back(state, step, lambda value: self._gradient(value, measurement))[1]
        self._calls.count += len(denoised)  # of the residual, beside that of the gradient
        residual = (measurement.to(denoised) - likelihood.operator(denoised)).flatten(1).norm(dim=1)
        tiny = torch.finfo(residual.dtype).tiny  # without a residual the gradient is zero, and so is u
        return guidance * expand(self._factor[step].to(residual) / residual.clamp_min(tiny), guidance)


class PseudoinverseGuidance:
    """The `Control` of pigdm."""

    def __init__(self, problem: InverseProblem) -> None:
        """For a Gaussian likelihood with a linear operator."""
        operator = _gaussian_likelihood(problem, "pigdm").operator
        if not isinstance(operator, LinearOperator):
            raise ValueError(
                "pigdm needs a linear forward operator A, since it inverts r^2 A A^T + sigma_y^2 I; "
                f"that of problem {problem.name!r} is {type(operator).__name__}; dps takes any operator"
            )
        gradient = problem.marginal_gradient
        assert gradient is not None  # noise of one size behind a linear operator has one
        self._prior, self._gradient = problem.prior, gradient

    def __call__(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """[N, *D] u; `guidance` is of no use to it, as the inverse stands between J and A."""
        variance = self._prior.uncertainty[step].square()

        def cotangent(value: Tensor) -> Tensor:
            return self._gradient(value, measurement, variance)

        return expand(self._prior.std[step], state) * self._prior.pull_back(state, step, cotangent)[1]


class GuidedProposal:
    """Behaviour b = N(m_k + std_k u_k, std_k^2 I), u the guidance's control, its root mean square bounded to 3.

    The bound is the one of the control form: no posterior moves a transition further in every direction, and the chain
    could otherwise run away (dps near the end, where std_k is small). It is part of u, so the density stays exact.
    """

    origin = Origin.GUIDED

    def __init__(self, control: Control) -> None:
        self._control = control

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`; the log-ratio of these paths is that of the guided chain."""

        def control(state: Tensor, *rest: Tensor) -> Tensor:
            return bounded(self._control(state, *rest), MAX_CONTROL)

        return rollout(problem, control, measurement_id, generator=generator, guided=posterior.uses_guidance)


def _gaussian_likelihood(problem: InverseProblem, kind: str) -> GaussianLikelihood:
    """The likelihood of `problem`; ValueError where there is no residual y - A(x) to follow."""
    likelihood = problem.guiding
    if not isinstance(likelihood, GaussianLikelihood):
        raise ValueError(
            f"{kind} follows the residual y - A(x) of a Gaussian likelihood (GaussianLikelihood); that of problem "
            f"{problem.name!r} is {type(likelihood).__name__}"
        )
    if isinstance(likelihood.noise_std, Tensor):
        raise ValueError(
            f"{kind} is published for noise of one size; that of problem {problem.name!r} has a size for each element "
            "of y"
        )
    return likelihood
