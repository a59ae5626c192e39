r"""The stability guard: keeps one bad batch, or a step size too large, from ending a run.

Every batch is looked at before its step is taken. Its residual scale m is the median of |delta|, robust against a few
paths far out; r is the scale that is normal by now, the smallest running mean of log m so far, let rise by 0.1 % an
update. A batch is *set aside*, its step not taken, if loss or gradient is not finite or m > `factor` r.

After `patience` batches in a row it is not the batch but the weights: the learner *rolls back* to a snapshot from
before, with step size and warm-up cut back. A run that had to roll back `max_rollbacks` times ends; weights that are
not finite never reach a checkpoint, because no step that would make them is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Diverged", "Guard", "GuardConfig", "Verdict"]

SMOOTHING = 0.9  # of the running mean of log m
RISE = 1.001  # of r in an update: it may double in 700
LEARNING = 20  # batches after the start, or a rollback, that tell what is normal
SNAPSHOT_INTERVAL = 200  # taken steps


class Diverged(RuntimeError):
    """Training cannot go on: every rollback ended where the last one did."""


class Verdict(Enum):
    """What to do with a batch."""

    TAKE = "take"
    SET_ASIDE = "set aside"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """When the guard steps in. What is not finite is set aside in any case."""

    factor: float | None = 10.0
    """Residual scale of a batch, relative to the normal one, beyond which it is set aside; null: never for that."""
    patience: int = 5
    """Batches set aside in a row, after which the learner rolls back."""
    step_cut: float = 0.5
    """Factor on the step size at every rollback."""
    max_rollbacks: int = 5
    """Rollbacks after which the run ends."""

    def __post_init__(self) -> None:
        if self.factor is not None and not self.factor > 1:
            raise ValueError(f"learner.guard.factor must be above 1 or null, got {self.factor}")
        if self.patience < 1 or self.max_rollbacks < 0:
            raise ValueError(
                "learner.guard.patience must be at least 1 and max_rollbacks at least 0, "
                f"got {self.patience} and {self.max_rollbacks}"
            )
        if not 0 < self.step_cut <= 1:
            raise ValueError(f"learner.guard.step_cut must be within (0, 1], got {self.step_cut}")


class Guard:
    """Judges batches; the learner acts on it.

    verdict = guard.examine(loss, gradient_norm, residual)
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.set_aside = 0
        """Batches whose step was not taken."""
        self.rollbacks = 0
        """Times that the learner went back to a snapshot."""
        self.reason = ""
        """Why the last batch that was set aside was."""
        self._row = 0  # batches set aside since the last that was taken
        self._taken = 0  # batches taken since the start or the last rollback
        self._seen = 0  # those of them that had a residual
        self._log_mean = 0.0
        self._log_normal = math.inf

    @property
    def step_factor(self) -> float:
        """Factor on the step size."""
        return self.config.step_cut**self.rollbacks

    @property
    def wants_snapshot(self) -> bool:
        """Whether the weights are to be remembered now: every 200 taken steps, in good health."""
        return self._row == 0 and self._taken > 0 and self._taken % SNAPSHOT_INTERVAL == 0

    def examine(self, loss: float, gradient_norm: float, residual: NDArray[np.floating[Any]] | None) -> Verdict:
        """What to do with a batch of this `loss`, norm of the gradient, and `residual` [B], None in pretraining.

        Raises:
            Diverged: it would have to be rolled back once more than is allowed.
        """
        scale = 0.0 if residual is None else float(np.median(np.abs(residual)))
        if math.isfinite(loss) and math.isfinite(gradient_norm) and math.isfinite(scale) and not self._explodes(scale):
            if residual is not None:
                self._learn(scale)
            self._row = 0
            self._taken += 1
            return Verdict.TAKE
        self.set_aside += 1
        self._row += 1
        self.reason = (
            f"loss {loss:.3g}, gradient norm {gradient_norm:.3g}, median residual {scale:.3g} nats, normally "
            f"{self.normal_scale:.3g}"
        )
        if self._row < self.config.patience:
            return Verdict.SET_ASIDE
        if self.rollbacks == self.config.max_rollbacks:
            raise Diverged(
                f"after {self.rollbacks} rollbacks {self._row} batches in a row cannot be learned from again "
                f"({self.reason}); lower learner.learning_rate, or look at the likelihood"
            )
        self.rollbacks += 1
        self.forget()
        return Verdict.ROLL_BACK

    def forget(self) -> None:
        """Learns anew what is normal; for weights that have been replaced on purpose."""
        self._row, self._taken, self._seen, self._log_normal = 0, 0, 0, math.inf

    @property
    def normal_scale(self) -> float:
        """r, nats; infinite while it is not known."""
        return math.exp(self._log_normal) if self._log_normal < math.inf else math.inf

    def _explodes(self, scale: float) -> bool:
        factor = self.config.factor
        return factor is not None and self._seen >= LEARNING and scale > factor * self.normal_scale

    def _learn(self, scale: float) -> None:
        value = math.log(max(scale, 1e-6))
        self._log_mean = value if self._seen == 0 else SMOOTHING * self._log_mean + (1 - SMOOTHING) * value
        self._seen += 1
        if self._seen >= LEARNING:
            self._log_normal = min(self._log_normal + math.log(RISE), self._log_mean)

    def state_dict(self) -> dict[str, float]:
        """All that `load_state_dict` restores."""
        return {name: getattr(self, name) for name in _STATE if math.isfinite(getattr(self, name))}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restores `state_dict`."""
        for name in _STATE:
            value = state.get(name, math.inf)
            setattr(self, name, int(value) if name in _COUNTS else float(value))


_COUNTS = ("set_aside", "rollbacks", "_row", "_taken", "_seen")
_STATE = (*_COUNTS, "_log_mean", "_log_normal")
