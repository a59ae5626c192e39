r"""A guided kernel: the prior's transitions shifted along the likelihood's gradient, by gains fitted to paths at hand.

    u_k = bound(c_k f_k + c'_k g_k),
    f_k = std_k grad_s log p(y | x^(s)) at s = s_k,    g_k = w_k e_k grad_x log p(y | x) at x = x^_k,

with the symbols of `diffusion.posterior.control`. f_k with c = 1 is diffusion posterior sampling (Chung et al. 2023,
arXiv 2209.14687), whose right size is not known beforehand, as it takes x^ for x. Here the two gains of every step are
those that make given paths most likely: with z_k the paths' own noise, log q - log p = z.u - |u|^2 / 2, so they are the
least squares of z_k on (f_k, g_k). Fitted to paths of the tempered posterior, the kernel follows it, without training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.kernel import expand
from diffusion.posterior import bounded
from envs.problem import InverseProblem

__all__ = ["GuidedKernel"]

MAX_CONTROL = 3.0  # root mean square of u: standard deviations of the transition
RIDGE = 1e-3  # of the mean square of a feature: f and g are nearly parallel at the last steps


class GuidedKernel:
    """A `Control` with two gains a step, zero at first: the prior."""

    def __init__(self, problem: InverseProblem) -> None:
        """For a problem whose likelihood has a gradient."""
        if problem.gradient is None:
            raise ValueError(f"the likelihood of problem {problem.name!r} has no gradient to be guided by")
        self._prior, self._gradient = problem.prior, problem.gradient
        self.gain = torch.zeros(2, problem.prior.num_steps, dtype=torch.float64)
        prior = self._prior
        self._scale = prior.denoised_coefficient * prior.uncertainty.square() / prior.std

    def __call__(self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor) -> Tensor:
        """[N, *D] u; see `actors.rollout.Control`."""
        pulled, direct = self._features(state, step, denoised, measurement, guidance)
        control = expand(self.gain[0, step], state) * pulled + expand(self.gain[1, step], state) * direct
        return bounded(control, MAX_CONTROL)

    def fit(self, states: Tensor, denoised: Tensor, guidance: Tensor, measurement: Tensor) -> None:
        """Gains that make the paths `states` [N, T+1, *D] most likely; `denoised`, `guidance` [N, T, *D], y [N, *Y]."""
        for index in range(self._prior.num_steps):
            step = torch.full((len(states),), index)
            state, estimate = states[:, index], denoised[:, index]
            mean = self._prior.mean(state, step, estimate)
            noise = (states[:, index + 1] - mean) / expand(self._prior.std[step], state)
            features = self._features(state, step, estimate, measurement, guidance[:, index])
            matrix = torch.stack([feature.flatten() for feature in features], 1).double()
            square = matrix.T @ matrix
            ridge = torch.diag(RIDGE * square.diagonal().clamp_min(1e-30))
            gain = torch.linalg.solve(square + ridge, matrix.T @ noise.flatten().double())
            self.gain[:, index] = torch.nan_to_num(gain, 0.0, 0.0, 0.0)

    def _features(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both gradients f and g [N, *D], scaled."""
        pulled = expand(self._prior.std[step], state) * guidance
        return pulled, expand(self._scale[step], state) * self._gradient(denoised, measurement)
