r"""The reward temperature beta: a schedule that waits for the posterior where it falls behind.

    beta(t) = beta_0 + (1 - beta_0) min(t / t_1, 1),    dt = min(ESS / threshold, 1) dprogress,

with ESS = (sum w)^2 / (B sum w^2) of the weights w = exp(-delta) of a batch, a running mean over ten batches. On paths
of q these are its importance weights for the target at beta, so ESS says how much of that target q has. At a threshold
of 0 t is the progress of the run. A clock held up so long that it has not reached t_1 by the end leaves beta below 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Annealing"]

SMOOTHING = 0.9  # of the running mean of the effective sample size


class Annealing:
    """The clock of beta."""

    def __init__(self, start: float, until: float, threshold: float) -> None:
        """Beta rises from `start` to 1 at time `until`; below the effective sample size `threshold` time slows."""
        self.start, self.until, self.threshold = start, until, threshold
        self.held_up = 0.0
        """Progress that the clock is behind."""
        self._progress = 0.0
        self._effective = 1.0

    def beta(self, progress: float) -> float:
        """Reward temperature at `progress` (0 to 1) of the run."""
        time = progress - self.held_up
        if time >= self.until:
            return 1.0
        return self.start + (1 - self.start) * time / self.until

    def learn(self, progress: float, residual: NDArray[np.floating] | None) -> None:
        """Takes in a batch's `residual` [B] at `progress`; None where it has none, and time goes on."""
        passed, self._progress = max(progress - self._progress, 0.0), max(progress, self._progress)
        if residual is None or self.threshold == 0 or self.beta(progress) == 1:
            return
        log_weight = -residual.astype(np.float64)
        weight = np.exp(log_weight - log_weight.max())
        fraction = float(weight.sum() ** 2 / (len(weight) * np.square(weight).sum()))
        if np.isfinite(fraction):
            self._effective = SMOOTHING * self._effective + (1 - SMOOTHING) * fraction
        self.held_up += passed * (1 - min(self._effective / self.threshold, 1.0))

    def state_dict(self) -> dict[str, float]:
        """All that `load_state_dict` restores."""
        return {"held_up": self.held_up, "progress": self._progress, "effective": self._effective}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restores `state_dict`."""
        self.held_up, self._progress = float(state["held_up"]), float(state["progress"])
        self._effective = float(state["effective"])
