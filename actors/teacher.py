r"""The adaptive teacher: a second sampler that goes where the posterior in training, the student, errs.

The teacher T has the student's form and is trained here, by VarGrad on its own recent paths, towards p(tau) R(tau),

    log R = log(1 + w delta^2) + alpha log p(y | x),    w = C where delta < 0, else 1,
    delta = log Z + sum_k [log q - log p] - log p(y | x),

delta being the student's residual: negative where q puts too little, so that a mode that the student has lost is worth
C times more than one it has too much of. alpha < 1 keeps the teacher broader than the posterior (Kim et al. 2024, arXiv
2410.01432, whose delta has the opposite sign). log Z is what the importance weights of the teacher's own paths average
to, whose density is known; it is no larger than the evidence on average, and paths that fit badly do not move it, as
they would move a mean of log-weights.

The reward changes with the student, so the teacher never arrives; that its paths are valid training data does not
depend on it. The loss is Huber's, centred at the median: a few paths far off would otherwise be all that it sees.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.rollout import Rollout, rollout
from diffusion.path import stacked_transitions
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["Teacher", "TeacherConfig", "log_reward", "student_residual"]

MAX_ROWS = 16_384  # transitions scored at once; bounds memory, not results
HUBER = 10.0  # nats from which the loss is linear
MAX_NORM = 10.0  # of a gradient; as learner.gradient_clip


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The second sampler and its reward."""

    under_sampling: float = 20.0
    """C, weight of a squared residual where the student samples too little; elsewhere it is 1."""
    exponent: float = 0.5
    """alpha, exponent of the likelihood in the reward."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    updates: int = 2
    """Optimiser steps a turn: on the new batch, then on recent ones."""
    memory: int = 8
    """Recent batches that are kept, in memory and in checkpoints."""

    def __post_init__(self) -> None:
        for name, least in (("under_sampling", 1), ("updates", 1), ("memory", 1), ("exponent", 0)):
            if not (least <= getattr(self, name) < math.inf):
                raise ValueError(f"actor.teacher.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"actor.teacher.learning_rate must be positive, got {self.learning_rate}")


class Batch(NamedTuple):
    """Paths of one measurement, as `actors.rollout.Rollout` has them."""

    states: Tensor
    denoised: Tensor
    guidance: Tensor | None
    log_behaviour_ratio: Tensor
    log_likelihood: Tensor
    measurement_id: Tensor


def student_residual(log_ratio: Tensor, log_behaviour_ratio: Tensor, log_likelihood: Tensor) -> Tensor:
    """[N] float64 delta of paths from `log_ratio` [N], log q - log p summed over the path, all of one measurement.

    log Z = log mean exp(log p(y | x) - [log b - log p]), b being what the paths were drawn from. A path of zero
    likelihood counts in it as that, and elsewhere as the worst of the others.
    """
    log_partition = (log_likelihood - log_behaviour_ratio).double().logsumexp(0) - math.log(len(log_ratio))
    return log_partition + log_ratio.double() - _worst_of_others(log_likelihood).double()


def _worst_of_others(log_likelihood: Tensor) -> Tensor:
    finite = torch.isfinite(log_likelihood)
    return torch.where(finite, log_likelihood, log_likelihood[finite].min())


def log_reward(residual: Tensor, log_likelihood: Tensor, under_sampling: float, exponent: float) -> Tensor:
    """[N] float64 log R; see the module's docstring."""
    weight = torch.where(residual < 0, under_sampling, 1.0)
    return torch.log1p(weight * residual.square()) + exponent * log_likelihood.double()


class Teacher:
    """Behaviour b = T, whose density is known."""

    origin = Origin.TEACHER

    def __init__(self, config: TeacherConfig, problem: InverseProblem) -> None:
        self.config = config
        self._problem = problem
        self._recent: deque[Batch] = deque(maxlen=config.memory)

    def prepare(self, posterior: Posterior) -> None:
        """See `actors.exploration.SeesPosterior`."""
        shared = {id(part): part for part in (posterior.prior, self._problem.likelihood)}  # frozen, so not copied
        self.sampler = copy.deepcopy(posterior, shared).requires_grad_(True)
        self._parameters = list(self.sampler.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=self.config.learning_rate)

    def explore(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        measurement_id: Tensor,
        progress: float,
        generator: torch.Generator,
    ) -> Rollout:
        """See `actors.exploration.Exploration`; all paths are of the first measurement in `measurement_id`."""
        row = measurement_id[:1].expand(len(measurement_id)).clone()
        guided = self.sampler.uses_guidance
        made = rollout(problem, self.sampler.control, row, generator=generator, guided=guided)
        self._recent.append(Batch(*(getattr(made, name) for name in Batch._fields)))
        chosen = torch.randint(len(self._recent), (self.config.updates - 1,), generator=generator).tolist()
        for index in [len(self._recent) - 1, *chosen]:
            self._update(posterior, self._recent[index])
        return made

    def _update(self, student: Posterior, batch: Batch) -> None:
        finite = torch.isfinite(batch.log_likelihood)
        if not bool(finite.any()):
            return
        log_likelihood = torch.where(finite, batch.log_likelihood, -math.inf)
        with torch.no_grad():
            residual = student_residual(self._log_ratio(student, batch), batch.log_behaviour_ratio, log_likelihood)
            config, learned = self.config, _worst_of_others(log_likelihood)
            wanted = log_reward(residual, learned, config.under_sampling, config.exponent)
            error = self._log_ratio(self.sampler, batch) - wanted
            error = (error - error.median()).clamp(-HUBER, HUBER)
        self._optimizer.zero_grad(set_to_none=True)
        # The gradient of the mean Huber loss; as errors are linear in log T, a chunk of transitions at a time.
        for row, log_ratio in self._scores(self.sampler, batch):
            ((error[row] * log_ratio.double()).sum() / len(error)).backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, MAX_NORM)
        if bool(torch.isfinite(norm)):
            self._optimizer.step()

    def _log_ratio(self, sampler: Posterior, batch: Batch) -> Tensor:
        """[N] float64 log-density of the paths under `sampler`, relative to the prior."""
        total = torch.zeros(len(batch.states), dtype=torch.float64)
        for row, log_ratio in self._scores(sampler, batch):
            total.index_add_(0, row, log_ratio.double())
        return total

    def _scores(self, sampler: Posterior, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """(trajectory [M], log-ratio [M]) of all transitions, in chunks."""
        for row, step in stacked_transitions(len(batch.states), self._problem.num_steps, MAX_ROWS):
            measurement = self._problem.measurements[batch.measurement_id[row]]
            guidance = None if batch.guidance is None else batch.guidance[row, step]
            state, following = batch.states[row, step], batch.states[row, step + 1]
            yield row, sampler.log_ratio(following, state, step, batch.denoised[row, step], measurement, guidance)

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """See `actors.exploration.Stateful`: weights, moments and recent batches."""
        tensors = {f"sampler.{name}": value for name, value in self.sampler.state_dict().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        for index, batch in enumerate(self._recent):
            parts = batch._asdict().items()
            tensors |= {f"recent.{index}.{name}": value for name, value in parts if value is not None}
        return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}, {
            "recent": len(self._recent)
        }

    def load_state_dict(
        self,
        problem: InverseProblem,
        arrays: dict[str, NDArray[Any]],
        scalars: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """See `actors.exploration.Stateful`."""
        tensors = {name: torch.as_tensor(np.array(value)) for name, value in arrays.items()}
        self.sampler.load_state_dict(_under("sampler.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            number, key = name.split(".", 1)
            moments.setdefault(int(number), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._recent.clear()
        for index in range(int(scalars["recent"])):
            parts: dict[str, Any] = {"guidance": None} | _under(f"recent.{index}.", tensors)
            self._recent.append(Batch(**parts))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
