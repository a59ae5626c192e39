"""Which item makes room for a new one, where it is not simply the oldest, and which new ones are not worth sending.

By likelihood the newest window is protected, so that a draw of the newest is what the actors made lately and not a
selection of it. Beyond the window the least likely item of a measurement goes, the older of two alike. Likelihoods of
different measurements do not compare, so the measurement is the one that holds most items beyond the window: the room
is shared equally among the measurements as far as they fill it. Where several hold the most they take turns.

One heap a measurement; O(log N) an item, and O(M) for the choice among M measurements.

A new item less likely than the one that goes next is itself the next to go, once it has left the window. Where no share
of the draws is of the newest, actors do not send it: they are told `floors`, and keep what is `worth_sending`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion.end_points import EndPoints
from diffusion.trajectory import Trajectory

__all__ = ["LeastLikely", "worth_sending"]


class LeastLikely:
    """The items beyond the window, ready to go in ascending order of their likelihood."""

    def __init__(self) -> None:
        self._heaps: list[list[tuple[float, int, int]]] = []  # (log-likelihood, serial number, slot) a measurement
        self._row: dict[int, int] = {}
        self._measurement = np.zeros(0, dtype=np.int64)
        self._held = np.zeros(0, dtype=np.int64)
        self.last_measurement = -1
        """Measurement that the last victim was of; all there is to restore beside the items."""

    def release(
        self,
        slots: NDArray[np.int64],
        serial: NDArray[np.int64],
        log_likelihood: NDArray[np.generic],
        measurement_id: NDArray[np.generic],
    ) -> None:
        """Take in items that have left the window."""
        items = zip(log_likelihood.tolist(), serial.tolist(), slots.tolist(), strict=True)
        for measurement, item in zip(measurement_id.tolist(), items, strict=True):
            row = self._row.setdefault(measurement, len(self._heaps))
            if row == len(self._heaps):
                self._heaps.append([])
                self._measurement = np.append(self._measurement, measurement)
                self._held = np.append(self._held, 0)
            heapq.heappush(self._heaps[row], item)
            self._held[row] += 1

    def victims(self, count: int) -> NDArray[np.int64]:
        """Slots of `count` items, which are taken out."""
        return np.array([self._pop() for _ in range(count)], dtype=np.int64)

    def floors(self) -> dict[int, float]:
        """Log-likelihood of the item to go first, of each measurement that the next one to go may be of."""
        fullest = np.flatnonzero((self._held > 0) & (self._held == self._held.max(initial=0)))
        return {int(self._measurement[row]): self._heaps[row][0][0] for row in fullest}

    def _pop(self) -> int:
        most = np.flatnonzero(self._held == self._held.max())
        measurement = self._measurement[most]
        later = measurement > self.last_measurement
        row = int(most[np.lexsort((measurement, ~later))[0]])
        self.last_measurement = int(self._measurement[row])
        self._held[row] -= 1
        return heapq.heappop(self._heaps[row])[2]


def worth_sending(items: Trajectory | EndPoints, floors: Mapping[int, float]) -> NDArray[np.intp]:
    """Rows of `items` that are not below the floor of their measurement; NaN is for the shard to count."""
    floor = np.array([floors.get(measurement, -np.inf) for measurement in items.measurement_id.tolist()])
    return np.flatnonzero(~(items.log_likelihood < floor))
