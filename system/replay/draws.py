"""Draws from a mixture of the newest and the prioritised items.

    P(i) = s_0 [i among the w newest] / w + sum_c s_c P_c(i),   sum s = 1,   P_c(i) = m_c(i) / sum_j m_c(j)

over the priorities c (`system.replay.priority`). Each row of a draw has exactly this marginal probability. The numbers
of rows from each part are s B rounded at random; that and the stratified draws within a part lower the variance only.
Where no item has mass under a priority, its share is drawn uniformly.

Grouped draws give each group one measurement: first a group's measurement, with the probability of all its items
together, then its members among them, so the marginal of every row is the same P(i) again. The members are stratified
too: a group as large as its measurement has items of equal probability is all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from system.replay.priority import Priority, stratified
from system.replay.storage import TrajectoryStorage

__all__ = ["MeasurementOrder", "Mixture"]


class MeasurementOrder:
    """Slots in order of their measurement; good until the next insert."""

    def __init__(self, storage: TrajectoryStorage) -> None:
        measurement_id = storage.column("measurement_id")
        self.slots = np.argsort(measurement_id, kind="stable")
        ordered = measurement_id[self.slots]
        self.last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)

    def __len__(self) -> int:
        return len(self.last)


class Mixture:
    """What a shard draws from at one moment."""

    def __init__(
        self,
        priorities: Sequence[Priority],
        shares: NDArray[np.float64],
        storage: TrajectoryStorage,
        newest_window: int,
    ) -> None:
        """`shares` [1 + C] are those of the newest and of each of the C `priorities`."""
        self._priorities = priorities
        self._shares = shares
        self._storage = storage
        self._window = min(newest_window, len(storage))

    def probability(self, slots: NDArray[np.int64], counts: Sequence[int] | None = None) -> NDArray[np.float64]:
        """P(i) of the items in `slots`; `counts` [C] are the rows of each priority in a draw that is not done yet."""
        mixed = np.zeros(len(slots))
        if self._shares[0] > 0:
            mixed += self._shares[0] * ((self._storage.age(slots) < self._window) / self._window)
        counts = counts or [1] * len(self._priorities)
        for share, priority, count in zip(self._shares[1:], self._priorities, counts, strict=True):
            if share > 0:
                mass = priority.probability(slots, count) if priority.total > 0 else 1 / len(self._storage)
                mixed += share * mass
        return mixed

    def draw(self, count: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Slots of `count` independent rows, in random order, and their P(i)."""
        ends = np.floor(np.cumsum(self._shares) * count + generator.random()).astype(np.int64)
        ends[-1] = count
        newest, *counts = np.diff(ends, prepend=0).tolist()
        parts = [self._storage.slots_of_age(generator.integers(self._window, size=newest))]
        for number, priority in zip(counts, self._priorities, strict=True):
            if priority.total > 0:
                parts.append(priority.draw(number, generator))
            else:
                parts.append(generator.integers(len(self._storage), size=number))
        slots = generator.permutation(np.concatenate(parts))
        probability = self.probability(slots, counts)
        for part, priority in zip(parts[1:], self._priorities, strict=True):
            if priority.total > 0:
                priority.drawn(part)
        return slots, probability

    def draw_groups(
        self, num_groups: int, group_size: int, order: MeasurementOrder, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`num_groups` groups one after another, each of `group_size` rows of one measurement: as `draw`; O(N)."""
        probability = self.probability(order.slots)
        cumulative = np.cumsum(probability)
        upper = cumulative[order.last]
        lower = np.concatenate([[0.0], upper[:-1]])
        group = _search(upper, stratified(num_groups, generator) * upper[-1], upper[-1])
        group = np.repeat(generator.permutation(group), group_size)
        strata = generator.permuted(np.tile(np.arange(group_size), (num_groups, 1)), axis=1).ravel()
        target = lower[group] + (strata + generator.random(len(group))) / group_size * (upper - lower)[group]
        place = _search(cumulative, target, upper[group])
        return order.slots[place], probability[place]


def _search(
    cumulative: NDArray[np.float64], target: NDArray[np.float64], end: NDArray[np.float64] | np.float64
) -> NDArray[np.intp]:
    # Strictly below the end, an entry without mass cannot be hit, whatever rounding did to the target.
    return np.searchsorted(cumulative, np.minimum(target, np.nextafter(end, 0.0)), side="right")
