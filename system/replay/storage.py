"""Ring storage of trajectories under a byte budget.

Items live in slots; the oldest is overwritten first. A slot's generation counts how often it was written, so
(slot, generation) names one item for ever and tells a late message about an overwritten item from one about its
successor. A uid that is stored already is skipped: inserts are retried at least once, and must count at most once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.trajectory import Trajectory

__all__ = ["TrajectoryStorage"]


class TrajectoryStorage:
    """Up to `byte_budget` bytes of trajectories, allocated when the first insert shows what one item takes."""

    def __init__(self, byte_budget: int, max_items: int | None = None, min_items: int = 1) -> None:
        if byte_budget < 1:
            raise ValueError(f"byte_budget must be positive, got {byte_budget}")
        if max_items is not None and max_items < min_items:
            raise ValueError(f"max_items must be at least min_items = {min_items}, got {max_items}")
        self._byte_budget = byte_budget
        self._max_items = max_items
        self._min_items = min_items
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._generation = np.zeros(0, dtype=np.int64)
        self._first_generation = 0
        self._uids: set[int] = set()
        self._cursor = 0
        self._size = 0
        self.capacity = 0
        self.item_bytes = 0
        self.duplicates = 0
        self.evictions = 0

    def __len__(self) -> int:
        return self._size

    def append(self, trajectory: Trajectory) -> NDArray[np.int64]:
        """Store what is new in `trajectory`, in order; the slots written."""
        if not len(trajectory):
            return np.zeros(0, dtype=np.int64)
        if not self.capacity:
            self._allocate(trajectory)
        self._check_fits(trajectory)
        rows = self._new_rows(trajectory.uid)
        slots = (self._cursor + np.arange(len(rows))) % self.capacity
        overwritten = slots[slots < self._size]
        self._uids.difference_update(self._arrays["uid"][overwritten].tolist())
        self._uids.update(trajectory.uid[rows].tolist())
        for name, value in trajectory.arrays().items():
            self._arrays[name][slots] = value[rows]
        self._generation[slots] += 1
        self.evictions += len(overwritten)
        self._cursor = int((self._cursor + len(rows)) % self.capacity)
        self._size = min(self._size + len(rows), self.capacity)
        return slots

    def take(self, slots: NDArray[np.integer]) -> Trajectory:
        """A copy of the trajectories in `slots`."""
        return Trajectory(**{name: value[slots] for name, value in self._arrays.items()})

    def column(self, name: str) -> NDArray[Any]:
        """One field of all stored items by slot, without copying; not to be written to."""
        return self._arrays[name][: self._size]

    def generation(self, slots: NDArray[np.integer]) -> NDArray[np.int64]:
        """How often each of `slots` has been written."""
        return self._generation[slots]

    def is_current(self, slots: NDArray[np.integer], generation: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether `slots` still hold the items they held at `generation`."""
        inside = (slots >= 0) & (slots < self._size)
        current = np.zeros(len(slots), dtype=np.bool_)
        current[inside] = self._generation[slots[inside]] == generation[inside]
        return current

    def age(self, slots: NDArray[np.integer]) -> NDArray[np.int64]:
        """Number of items stored after each of `slots`: 0 for the newest."""
        return np.asarray(self._cursor - 1 - slots, dtype=np.int64) % self.capacity

    def slots_of_age(self, age: NDArray[np.integer]) -> NDArray[np.int64]:
        """Inverse of `age`, for ages in [0, len(self))."""
        return np.asarray(self._cursor - 1 - age, dtype=np.int64) % self.capacity

    def slots_by_age(self) -> NDArray[np.int64]:
        """All slots in use, oldest first."""
        return self.slots_of_age(np.arange(self._size)[::-1])

    def retire_ids(self) -> None:
        """Make every (slot, generation) handed out so far stale.

        After a crash the shard goes on from an older snapshot; ids from between the two may still be under way, and
        would otherwise name the wrong items. 2^32 is more than any slot is overwritten in that time.
        """
        self._generation += 1 << 32
        self._first_generation += 1 << 32

    def state_dict(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Arrays by slot, and the scalars beside them."""
        arrays = {name: value[: self._size].copy() for name, value in self._arrays.items()}
        if arrays:
            arrays["generation"] = self._generation[: self._size].copy()
        scalars = {
            "capacity": self.capacity,
            "cursor": self._cursor,
            "first_generation": self._first_generation,
            "duplicates": self.duplicates,
            "evictions": self.evictions,
        }
        return arrays, scalars

    def load_state_dict(
        self, arrays: Mapping[str, NDArray[np.generic]], scalars: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        """Restore; the saved slot of every item now in slots 0, 1, ...

        Where the budget gives the saved capacity the slots are what they were. Otherwise the newest items that fit
        are packed from slot 0 on, and ids from before are all stale.
        """
        if self.capacity:
            raise RuntimeError(f"state must be loaded into an empty storage, this one holds {self._size} items")
        self.duplicates, self.evictions = scalars["duplicates"], scalars["evictions"]
        self._first_generation = scalars["first_generation"]
        if not arrays:
            return np.zeros(0, dtype=np.int64)
        saved = Trajectory(**{name: value for name, value in arrays.items() if name != "generation"})  # type: ignore[arg-type]
        generation = np.asarray(arrays["generation"], dtype=np.int64)
        self._allocate(saved)
        if self.capacity == scalars["capacity"]:
            kept = np.arange(len(saved))
            self._cursor = scalars["cursor"]
        else:
            by_age = (scalars["cursor"] + np.arange(len(saved)) - len(saved)) % scalars["capacity"]
            kept = by_age[-self.capacity :]
            self._cursor = len(kept) % self.capacity
            self.evictions += len(saved) - len(kept)
            self._first_generation = int(generation.max())
            self._generation[:] = self._first_generation
            generation = np.full(len(saved), self._first_generation + 1)
        self._size = len(kept)
        for name, value in saved.arrays().items():
            self._arrays[name][: self._size] = value[kept]
        self._generation[: self._size] = generation[kept]
        self._uids = set(saved.uid[kept].tolist())
        return kept

    def _allocate(self, trajectory: Trajectory) -> None:
        arrays = trajectory.arrays()
        self.item_bytes = sum(value[:1].nbytes for value in arrays.values())
        fitting = self._byte_budget // self.item_bytes
        if fitting < self._min_items:
            raise ValueError(
                f"a budget of {self._byte_budget} bytes holds {fitting} items of {self.item_bytes} bytes, "
                f"but at least {self._min_items} are needed"
            )
        self.capacity = fitting if self._max_items is None else min(fitting, self._max_items)
        # Pages are taken from the system only as they are written, so an ample budget costs nothing up front.
        self._arrays = {
            name: np.empty((self.capacity, *value.shape[1:]), value.dtype) for name, value in arrays.items()
        }
        self._generation = np.full(self.capacity, self._first_generation, dtype=np.int64)

    def _check_fits(self, trajectory: Trajectory) -> None:
        got = {name: (value.shape[1:], str(value.dtype)) for name, value in trajectory.arrays().items()}
        expected = {name: (value.shape[1:], str(value.dtype)) for name, value in self._arrays.items()}
        if got.keys() != expected.keys():
            raise ValueError(f"expected trajectories with {sorted(expected)}, got {sorted(got)}")
        for name in expected:
            if got[name] != expected[name]:
                raise ValueError(f"{name} of one item: expected {expected[name]}, got {got[name]}")
        if len(trajectory) > self.capacity:
            raise ValueError(
                f"a budget of {self._byte_budget} bytes holds {self.capacity} items of {self.item_bytes} bytes, "
                f"not one insert of {len(trajectory)}"
            )

    def _new_rows(self, uid: NDArray[np.uint64]) -> NDArray[np.int64]:
        first_row: dict[int, int] = {}
        for row, value in enumerate(uid.tolist()):
            if value not in self._uids:
                first_row.setdefault(value, row)
        self.duplicates += len(uid) - len(first_row)
        return np.fromiter(first_row.values(), dtype=np.int64, count=len(first_row))
