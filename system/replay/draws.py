"""Draws from a mixture of the newest and the prioritised items.

    P(i) = s [i among the w newest] / w + (1 - s) m_i / sum_j m_j

Each row of a draw has exactly this marginal probability. The number of rows from the newest is s B rounded at random,
and the prioritised rows are stratified, one from each of equal shares of the mass (Schaul et al. 2016); both lower the
variance only. Where no item has mass, the prioritised share is uniform.

Grouped draws give each group one measurement: first a group's measurement, with the probability of all its items
together, then its members among them, so the marginal of every row is the same P(i) again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from system.replay.storage import TrajectoryStorage
from system.replay.sum_tree import SumTree

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

    def __init__(self, tree: SumTree, storage: TrajectoryStorage, newest_share: float, newest_window: int) -> None:
        self._tree = tree
        self._storage = storage
        self._share = newest_share
        self._window = min(newest_window, len(storage))
        self._total = tree.total

    def probability(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(i) of the items in `slots`."""
        newest = (self._storage.age(slots) < self._window) / self._window
        if self._total > 0:
            prioritised = self._tree.get(slots) / self._total
        else:
            prioritised = np.full(len(slots), 1 / len(self._storage))
        mixed: NDArray[np.float64] = self._share * newest + (1 - self._share) * prioritised
        return mixed

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Slots of `count` independent rows, in random order."""
        num_newest = int(np.floor(self._share * count + generator.random()))
        newest = self._storage.slots_of_age(generator.integers(self._window, size=num_newest))
        num_prioritised = count - num_newest
        if self._total > 0:
            targets = _stratified(num_prioritised, generator) * self._total
            prioritised = self._tree.sample(np.minimum(targets, self._total))
        else:
            prioritised = generator.integers(len(self._storage), size=num_prioritised)
        return generator.permutation(np.concatenate([newest, prioritised]))

    def draw_groups(
        self, num_groups: int, group_size: int, order: MeasurementOrder, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Slots of `num_groups` groups one after another, each of `group_size` rows of one measurement; O(N)."""
        cumulative = np.cumsum(self.probability(order.slots))
        upper = cumulative[order.last]
        lower = np.concatenate([[0.0], upper[:-1]])
        group = _search(upper, _stratified(num_groups, generator) * upper[-1], upper[-1])
        group = np.repeat(generator.permutation(group), group_size)
        target = lower[group] + generator.random(len(group)) * (upper - lower)[group]
        slots: NDArray[np.int64] = order.slots[_search(cumulative, target, upper[group])]
        return slots


def _search(
    cumulative: NDArray[np.float64], target: NDArray[np.float64], end: NDArray[np.float64] | np.float64
) -> NDArray[np.intp]:
    # Strictly below the end, an entry without mass cannot be hit, whatever rounding did to the target.
    return np.searchsorted(cumulative, np.minimum(target, np.nextafter(end, 0.0)), side="right")


def _stratified(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return (np.arange(count) + generator.random(count)) / max(count, 1)
