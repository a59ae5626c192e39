"""Priorities whose masses are relative to the item's measurement.

Log-weights of different measurements differ by their evidence, and the most probable measurement would otherwise get
all the draws. So the masses of a measurement's items sum to one, or to the share f of it that this shard holds,

    m_i = f v_i / V,   V = sum_j v_j,   f = V / V_all,

once the shards have told each other their V (`log_totals`, `refer`): then m_i = v_i / V_all is the same whichever shard
has the item, but for truncated weights: their cap is that of the shard's own n items, so S shards truncate them more
than one would. A single shard has f = 1. All simulated measurements together count as one more.

A new item is placed with the stored V, n and cap of its measurement; all are computed anew when 1/16 of the items are
new, when a measurement is new, or when an item is too far from what is stored. That is O(16) a new item on average, and
nothing at draw time; what is stale in between is the share of a measurement, by the weight of that sixteenth. The
probability reported with a draw is exact at all times.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.replay.messages import LogTotals
from system.replay.priority import TreePriority
from system.replay.storage import TrajectoryStorage, problem_measurement
from system.replay.sum_tree import SumTree

__all__ = ["MeasurementPriority"]

_RENEWED_SHARE = 16  # all masses are computed anew when one item in this many is new


class MeasurementPriority(TreePriority):
    """Masses known when an item arrives, normalised for each measurement."""

    def __init__(self) -> None:
        super().__init__()
        self._new_items = 0
        self._reference = LogTotals.nothing()
        # Of every measurement, in ascending order of id: log V, and log f.
        self._measurement = np.zeros(0, dtype=np.int64)
        self._log_total = np.zeros(0)
        self._log_share = np.zeros(0)

    @abstractmethod
    def renewed(self, storage: TrajectoryStorage) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """(masses [N] that sum to one for every measurement, the M measurements, their log V), all computed anew."""

    @abstractmethod
    def placed(
        self, storage: TrajectoryStorage, slots: NDArray[np.int64], row: NDArray[np.intp]
    ) -> NDArray[np.float64] | None:
        """Masses for f = 1 of the items in `slots`, of the measurements number `row`; None: compute all anew."""

    def set_masses(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """See `TreePriority`."""
        self._new_items += len(slots)
        if self._new_items * _RENEWED_SHARE < len(storage):
            measurement = problem_measurement(storage.column("measurement_id")[slots])
            row = np.searchsorted(self._measurement, measurement).clip(max=len(self._measurement) - 1)
            if np.array_equal(self._measurement[row], measurement):
                masses = self.placed(storage, slots, row)
                if masses is not None:
                    tree.set(slots, masses * np.exp(self._log_share[row]))
                    return
        masses, self._measurement, self._log_total = self.renewed(storage)
        self._log_share = self._reference.log_share(self._measurement, self._log_total)
        if self._log_share.any():
            row = np.searchsorted(self._measurement, problem_measurement(storage.column("measurement_id")))
            masses = masses * np.exp(self._log_share)[row]
        tree.fill(masses)
        self._new_items = 0

    def log_totals(self) -> LogTotals:
        """See `Priority`."""
        return LogTotals(measurement=self._measurement, log_total=self._log_total)

    def refer(self, log_totals: LogTotals) -> None:
        """See `Priority`."""
        self._reference = log_totals

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """See `Priority`."""
        return super().state_dict() | {
            "measurement": self._measurement.copy(),
            "log_total": self._log_total.copy(),
            "log_share": self._log_share.copy(),
            "new_items": np.array([self._new_items]),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], capacity: int) -> None:
        """See `Priority`."""
        super().load_state_dict(state, capacity)
        self._measurement = np.array(state["measurement"])
        self._log_total = np.array(state["log_total"])
        self._log_share = np.array(state["log_share"])
        self._new_items = int(state["new_items"][0])
