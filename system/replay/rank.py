"""Priority by the rank of the likelihood within its measurement (Sendera et al. 2024, arXiv 2402.05098).

    m = 1 / (k n + rank),   k = 0.01,   rank = 1 + how many of the n items of the measurement are likelier

Depends on the order of the likelihoods alone, so neither their scale nor an outlier can take all the draws: the
likeliest percent of the items gets log(2) / log(101) = 15 % of them. Items of zero likelihood are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.replay.measurement_priority import MeasurementPriority
from system.replay.storage import TrajectoryStorage, problem_measurement

__all__ = ["RankPriority"]

_K = 0.01


class RankPriority(MeasurementPriority):
    """Mass by rank; a new item has the rank that it would have had at the last renewal."""

    def __init__(self) -> None:
        super().__init__()
        self._ordered = np.zeros(0, dtype=np.float32)  # log-likelihoods > -inf: by measurement, the least likely first
        self._end = np.zeros(0, dtype=np.int64)  # [M] where those of each measurement end
        self._norm = np.zeros(0)  # [M] sum over the measurement of 1 / (k n + rank)

    def renewed(self, storage: TrajectoryStorage) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """See `MeasurementPriority`; log V is log n, as the shards hold random parts of what the actors make."""
        log_likelihood = storage.column("log_likelihood")
        measurement, group = np.unique(problem_measurement(storage.column("measurement_id")), return_inverse=True)
        order = np.lexsort((log_likelihood, group))
        order = order[log_likelihood[order] > -np.inf]
        self._ordered = log_likelihood[order]
        count = np.bincount(group[order], minlength=len(measurement))
        self._end = np.cumsum(count)
        run = np.append((self._ordered[1:] != self._ordered[:-1]) | (np.diff(group[order]) > 0), True)[: len(order)]
        up_to = np.flatnonzero(run)[np.cumsum(run) - run] + 1  # end of the run of equal likelihoods each is in
        masses = np.zeros(len(storage))
        masses[order] = self._weight(self._end[group[order]] - up_to, count[group[order]])
        self._norm = np.maximum(np.bincount(group, masses, minlength=len(measurement)), np.finfo(np.float64).tiny)
        with np.errstate(divide="ignore"):
            return masses / self._norm[group], measurement, np.log(count)

    def placed(
        self, storage: TrajectoryStorage, slots: NDArray[np.int64], row: NDArray[np.intp]
    ) -> NDArray[np.float64] | None:
        """See `MeasurementPriority`."""
        log_likelihood = storage.column("log_likelihood")[slots]
        possible = log_likelihood > -np.inf
        if np.any(possible & ~np.isfinite(self._log_total[row])):
            return None
        count = np.diff(self._end, prepend=0)[row]
        likelier = np.empty(len(row), dtype=np.int64)
        for each in np.unique(row):
            own = row == each
            part = self._ordered[self._end[each] - count[own][0] : self._end[each]]
            likelier[own] = len(part) - np.searchsorted(part, log_likelihood[own], side="right")
        return np.where(possible, self._weight(likelier, np.maximum(count, 1)) / self._norm[row], 0.0)

    @staticmethod
    def _weight(likelier: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
        weight: NDArray[np.float64] = 1 / (_K * count + 1 + likelier)
        return weight

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """See `Priority`."""
        return super().state_dict() | {
            "ordered": self._ordered.copy(),
            "end": self._end.copy(),
            "norm": self._norm.copy(),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], capacity: int) -> None:
        """See `Priority`."""
        super().load_state_dict(state, capacity)
        self._ordered, self._end = np.array(state["ordered"]), np.array(state["end"])
        self._norm = np.array(state["norm"])
