"""Random reshuffling: every item once, in random order, before any is drawn again.

An epoch begins with all items. A new item joins the epoch that goes on; with an evicted one its turn is lost. The rows
of a draw are exchangeable, so with R of N items left each row of a draw of B <= R has the marginal 1 / R of the items
left; where the epoch ends within the draw, with D of B rows left to it, it is (1 + (B - D) / N) / B of those left and
(B - D) / (N B) of the others, and so on over further epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.replay.priority import Priority, possible
from system.replay.storage import TrajectoryStorage

__all__ = ["ReshuffledPriority"]


class ReshuffledPriority(Priority):
    """Draws without replacement, O(1) an item."""

    def __init__(self) -> None:
        self._all = _SlotSet(0)
        self._left = _SlotSet(0)

    @property
    def total(self) -> float:
        """See `Priority`: the number of items."""
        return float(len(self._all))

    def place(self, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """See `Priority`."""
        if not self._all.capacity:
            self._all, self._left = _SlotSet(storage.capacity), _SlotSet(storage.capacity)
        for each in (self._all, self._left):
            each.discard(slots)
            each.add(slots[possible(storage, slots)])

    def probability(self, slots: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """See `Priority`; of the draw of `count` that comes next."""
        if not count:
            return np.zeros(len(slots))
        everything, left = len(self._all), len(self._left)
        expected = np.where(self._left.holds(slots), min(count / max(left, 1), 1.0), 0.0)
        expected += self._all.holds(slots) * max(count - left, 0) / max(everything, 1)
        probability: NDArray[np.float64] = expected / count
        return probability

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """See `Priority`."""
        parts = [self._left.choose(min(count, len(self._left)), generator)]
        while (missing := count - sum(map(len, parts))) > 0:
            parts.append(self._all.choose(min(missing, len(self._all)), generator))
        return np.concatenate(parts)

    def drawn(self, slots: NDArray[np.int64]) -> None:
        """See `Priority`."""
        beyond = len(slots) - len(self._left)
        if beyond > 0:  # the epoch ended, and so may have some more
            slots = slots[len(slots) - (beyond - 1) % len(self._all) - 1 :]
            self._left.discard(self._left.slots())
            self._left.add(self._all.slots())
        self._left.discard(slots)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """See `Priority`."""
        return {"all": self._all.slots(), "left": self._left.slots()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], capacity: int) -> None:
        """See `Priority`."""
        self._all, self._left = _SlotSet(capacity), _SlotSet(capacity)
        self._all.add(state["all"])
        self._left.add(state["left"])


class _SlotSet:
    """A set of slots out of which random ones are taken, in arrays."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots = np.empty(capacity, dtype=np.int64)  # the members, in the first places
        self._place = np.full(capacity, -1, dtype=np.int64)  # of each slot; -1 for those that are not members
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def slots(self) -> NDArray[np.int64]:
        """The members, in the order that decides what a generator takes."""
        return self._slots[: self._size].copy()

    def holds(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `slots` are members."""
        member: NDArray[np.bool_] = self._place[slots] >= 0
        return member

    def add(self, slots: NDArray[np.int64]) -> None:
        """Take in `slots`, none of which is a member."""
        places = self._size + np.arange(len(slots))
        self._slots[places], self._place[slots] = slots, places
        self._size += len(slots)

    def discard(self, slots: NDArray[np.int64]) -> None:
        """Remove those of `slots` that are members."""
        self._remove(self._place[slots[self.holds(slots)]])

    def choose(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """`count` different members, each as likely as any other, in random order."""
        return self._slots[generator.choice(self._size, size=count, replace=False)]

    def _remove(self, places: NDArray[np.int64]) -> None:
        self._place[self._slots[places]] = -1
        self._size -= len(places)
        tail = self._slots[self._size : self._size + len(places)]
        holes = np.sort(places[places < self._size])
        moved = tail[self._place[tail] >= 0]  # the last members move into the holes
        self._slots[holes], self._place[moved] = moved, holes
