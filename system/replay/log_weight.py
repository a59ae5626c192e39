"""Priority by a log-weight: the likelihood, or the importance weight.

    likelihood  v = exp(a log p(y | x))
    importance  v = min(w, mean(w) n^c),  w = exp(a log p(tau) p(y | x) / b(tau)),  n items of the measurement, c = 1/2

Importance: draws stand for the posterior path measure, whatever kernel b made the paths; the cap is truncated
importance sampling (Ionides 2008), c = 1 being no cap. Masses are relative to a stored log-normaliser, so weights of
e^(+-10000) neither overflow nor vanish together; all are computed anew when a new item outweighs its measurement by
more than 50 nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.replay.measurement_priority import MeasurementPriority
from system.replay.storage import TrajectoryStorage, problem_measurement

__all__ = ["LogWeightPriority", "normalised_masses"]

_REBASE_NATS = 50.0


class LogWeightPriority(MeasurementPriority):
    """Mass by a log-weight."""

    def __init__(self, exponent: float, importance: bool, truncation: float) -> None:
        super().__init__()
        self._exponent = exponent
        self._importance = importance
        self._truncation = truncation
        self._log_cap = np.zeros(0)

    def renewed(self, storage: TrajectoryStorage) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """See `MeasurementPriority`."""
        log_weight = self._log_weight(storage, np.arange(len(storage)))
        measurement_id = problem_measurement(storage.column("measurement_id"))
        masses, measurement, log_total, self._log_cap = normalised_masses(log_weight, measurement_id, self._truncation)
        return masses, measurement, log_total

    def placed(
        self, storage: TrajectoryStorage, slots: NDArray[np.int64], row: NDArray[np.intp]
    ) -> NDArray[np.float64] | None:
        """See `MeasurementPriority`."""
        log_weight, log_total = self._log_weight(storage, slots), self._log_total[row]
        if not np.isfinite(log_total).all() or np.any(log_weight - log_total > _REBASE_NATS):
            return None
        masses: NDArray[np.float64] = np.exp(np.minimum(log_weight, self._log_cap[row]) - log_total)
        return masses

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """See `Priority`."""
        return super().state_dict() | {"log_cap": self._log_cap.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], capacity: int) -> None:
        """See `Priority`."""
        super().load_state_dict(state, capacity)
        self._log_cap = np.array(state["log_cap"])

    def _log_weight(self, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        log_weight = storage.column("log_likelihood")[slots].astype(np.float64)
        if self._importance:
            log_weight = log_weight - storage.column("log_behaviour_ratio")[slots]
        scaled: NDArray[np.float64] = self._exponent * log_weight
        return scaled


def normalised_masses(
    log_weight: NDArray[np.float64],  # [N]
    measurement_id: NDArray[np.int64],  # [N]
    truncation: float,  # c
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Masses that sum to one for every measurement, and how they came about.

    m_i = min(w_i, cap) / sum_j min(w_j, cap),  cap = mean(w) n^c,  over the n items of the same measurement

    Returns:
        masses [N]; the M measurements, their log sum_j min(w_j, cap), and their log cap, [M] each.
    """
    measurement, group = np.unique(measurement_id, return_inverse=True)
    count = np.bincount(group)
    peak = np.full(len(measurement), -np.inf)
    np.maximum.at(peak, group, log_weight)
    possible = np.isfinite(peak)
    reference = np.where(possible, peak, 0.0)
    weight = np.exp(log_weight - reference[group])
    cap = np.bincount(group, weight) / count * count.astype(np.float64) ** truncation
    if truncation == 1:
        cap = np.full(len(measurement), np.inf)  # no weight exceeds the sum, but one yet to come may exceed this sum
    weight = np.minimum(weight, cap[group])
    total = np.where(possible, np.bincount(group, weight), 1.0)
    log_normaliser = np.where(possible, reference + np.log(total), -np.inf)
    log_cap = np.where(possible, reference + np.log(np.where(possible, cap, 1.0)), -np.inf)
    return weight / total[group], measurement, log_normaliser, log_cap
