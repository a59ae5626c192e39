r"""Paths that come from replay, moved in path space: each keeps the importance weight that it came with.

The moves of `actors.path_search` leave the posterior pi of the chain invariant. So if paths tau with weights w stand
for it, in that E[w f(tau)] = Z E_pi[f] for every f, then so do the moved paths with the *same* weights (resample-move,
Gilks and Berzuini 2001; annealed importance sampling, Neal 2001):

    E[w f(tau')] = Z E_pi[E[f(tau') | tau]] = Z E_pi[f],

however little or much they have moved, and whether a proposal was taken or refused. Paths that are refused are handed
on as well, for to leave them out would favour those that move. A start that replay chose by what it is like comes with
the probability of that choice in its weight already (`system.replay.tournament`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from actors.known_paths import estimates_along
from actors.path_search import PathSearch
from actors.rollout import Rollout
from diffusion.kernel import normal_log_prob
from diffusion.trajectory import Trajectory
from envs.problem import InverseProblem

__all__ = ["StoredPaths"]


class StoredPaths(PathSearch):
    """Paths of any measurements at beta = 1.

    paths = StoredPaths(problem, stored, generator=generator, guided=posterior.uses_guidance)
    paths.renoise_prefix(problem.num_steps)
    accepted = paths.redraw_suffix(first, posterior.control)
    rollout = paths.paths(float(accepted.double().mean()))
    """

    def __init__(
        self, problem: InverseProblem, stored: Trajectory, *, generator: torch.Generator | None, guided: bool
    ) -> None:
        """`guided` computes the likelihood's gradient along the paths, for kernels that use it."""
        # Copies: arrays that come through shared memory are read-only, and the moves work in place.
        arrays = {name: torch.as_tensor(np.array(value)) for name, value in stored.arrays().items()}
        self._begin(problem, arrays["measurement_id"], 1.0, generator, guided)
        self.states, self.log_prior = arrays["states"], arrays["log_prior"]
        self.log_likelihood = arrays["log_likelihood"]
        if "denoised" in arrays and (not guided or "guidance" in arrays):
            self.denoised, self.guidance = arrays["denoised"], arrays["guidance"] if guided else None
        else:
            self.denoised, self.guidance = estimates_along(problem, self.states, self.measurement_id, guided)
        self.log_noising = self.prior.noising.path_log_prob(self.states)
        self._log_weight = torch.as_tensor(stored.log_importance)

    def last_transition(self) -> tuple[Tensor, Tensor]:
        """(m [N, *D], std [N]) of the prior's transition from s_T-1 to x."""
        last = self.prior.num_steps - 1
        step = torch.full((len(self.states),), last)
        return self.prior.mean(self.states[:, last], step, self.denoised[:, last]), self.prior.std[step]

    def replace_samples(self, accepted: Tensor, samples: Tensor, log_likelihood: Tensor) -> None:
        """Gives the `accepted` paths [N] the ends `samples` [N, *D] of `log_likelihood` [N]; s_0..s_T-1 stay."""
        last = self.prior.num_steps - 1
        self.states[:, -1][accepted] = samples[accepted]
        self.log_likelihood[accepted] = log_likelihood[accepted]
        mean, std = self.last_transition()
        self.log_prior[:, last] = normal_log_prob(self.samples, mean, std)
        self.log_noising[:, last] = self.prior.noising.log_prob(self.states[:, last], self.samples, last + 1, last)

    def experience(self) -> dict[str, Tensor]:
        """What sweeps have taught about the moves, for the paths of later turns."""
        learned = {"tried": self._choice.tried, "gained": self._choice.gained, "sweeps": torch.full((1,), self.sweeps)}
        return learned if self._guide is None else learned | {"gain": self._guide.gain}

    def take_experience(self, learned: Mapping[str, Tensor]) -> None:
        """Goes on from the `experience` of earlier paths, if there is any."""
        if learned:
            self._choice.tried, self._choice.gained = learned["tried"].clone(), learned["gained"].clone()
            self.sweeps = int(learned["sweeps"])
            if self._guide is not None:
                self._guide.gain = learned["gain"].clone()

    def paths(self, acceptance: float | None = None, *, guided: bool = True) -> Rollout:
        """The paths as they are, with log b - log p such that log p(tau) p(y | x) / b(tau) is what it was."""
        behaviour = self.log_likelihood.double() - self._log_weight
        impossible = self._log_weight == -math.inf  # of weight zero they remain, though their likelihood may not be
        behaviour = torch.where(impossible, math.inf, behaviour)
        return self._rollout(behaviour, acceptance, guided)
