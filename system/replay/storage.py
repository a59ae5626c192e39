"""Storage of trajectories, or of their end points alone, under a byte budget.

Items live in slots; a new one takes the slot of the oldest, or of the least likely: `evict_by`. A slot's generation
counts how often it was written, so (slot, generation) names one item for ever and tells a late message about an
overwritten item from one about its successor. A uid that is stored already is skipped: inserts are retried at least
once, and must count at most once. Items are numbered as they come, and the age of one is how many came after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion.end_points import EndPoints
from diffusion.trajectory import Trajectory
from system.replay.eviction import LeastLikely
from system.replay.spill import mapped_array

__all__ = ["EvictBy", "Items", "TrajectoryStorage", "problem_measurement"]

EvictBy = Literal["age", "likelihood"]
Items = Trajectory | EndPoints


def problem_measurement(measurement_id: NDArray[Any]) -> NDArray[np.int64]:
    """`measurement_id`, with -1 for all simulated measurements: they come and go, and are of a few items each."""
    return np.maximum(measurement_id, -1)


class TrajectoryStorage:
    """Up to `byte_budget` bytes of trajectories, allocated when the first insert shows what one item takes."""

    def __init__(
        self,
        byte_budget: int,
        max_items: int | None = None,
        min_items: int = 1,
        *,
        evict_by: EvictBy = "age",
        window: int = 1,
        kind: type[Trajectory] | type[EndPoints] = Trajectory,
        spill: str | None = None,
    ) -> None:
        """`window` newest items are safe from eviction by likelihood; `kind` is what an item is one row of.

        With `spill` arrays of more than one number an item lie in files in that directory; see `mapped_array`.
        """
        self._spill = spill
        self._kind = kind
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
        self._serial = np.zeros(0, dtype=np.int64)  # number of the item in each slot, in the order they came
        self._slot_of = np.zeros(0, dtype=np.int64)  # slot of item number s at s % capacity, good for the newest
        self._uids: set[int] = set()
        self._items_of: Counter[int] = Counter()  # number of items of each measurement
        self._window = window
        self._least_likely = LeastLikely() if evict_by == "likelihood" else None
        self._count = 0  # number of the next item
        self._size = 0
        self.capacity = 0
        self.item_bytes = 0
        self.duplicates = 0
        self.evictions = 0

    def __len__(self) -> int:
        return self._size

    def append(self, trajectory: Items) -> NDArray[np.int64]:
        """Store what is new in `trajectory`, in order; the slots written."""
        if not len(trajectory):
            return np.zeros(0, dtype=np.int64)
        if not self.capacity:
            self._allocate(trajectory)
        self._check_fits(trajectory)
        rows = self._new_rows(trajectory.uid)
        slots = self._claim(len(rows))
        overwritten = slots[slots < self._size]
        self._uids.difference_update(self._arrays["uid"][overwritten].tolist())
        self._uids.update(trajectory.uid[rows].tolist())
        self._items_of.subtract(problem_measurement(self._arrays["measurement_id"][overwritten]).tolist())
        self._items_of.update(problem_measurement(trajectory.measurement_id[rows]).tolist())
        for name, value in trajectory.arrays().items():
            self._arrays[name][slots] = value[rows]
        self._generation[slots] += 1
        self.evictions += len(overwritten)
        self._number(slots)
        self._size = min(self._size + len(rows), self.capacity)
        return slots

    def _claim(self, count: int) -> NDArray[np.int64]:
        """Slots for the next `count` items."""
        if self._least_likely is None:
            return np.asarray(self._count + np.arange(count)) % self.capacity
        # What `count` new items push out of the window may go; then as many go as there are too few free slots.
        ages = np.arange(max(self._window - count, 0), min(self._window, self._size))
        self._release(self.slots_of_age(ages[::-1]))
        free = min(self.capacity - self._size, count)
        return np.concatenate([self._size + np.arange(free), self._least_likely.victims(count - free)])

    def floors(self) -> dict[int, float]:
        """See `LeastLikely.floors`; nothing while there is room, or where eviction is by age."""
        full = self.capacity and self._size == self.capacity
        return self._least_likely.floors() if full and self._least_likely is not None else {}

    def _release(self, slots: NDArray[np.int64]) -> None:
        assert self._least_likely is not None
        columns = (self._arrays[name][slots] for name in ("log_likelihood", "measurement_id"))
        self._least_likely.release(slots, self._serial[slots], *columns)

    def _number(self, slots: NDArray[np.int64]) -> None:
        """The items in `slots` are the newest, in this order."""
        serial = self._count + np.arange(len(slots))
        self._serial[slots] = serial
        self._slot_of[serial % self.capacity] = slots
        self._count += len(slots)

    def expire(self, slots: NDArray[np.integer]) -> None:
        """From now on the likelihood of the items in `slots` counts as zero, so that no priority gives them mass."""
        self._arrays["log_likelihood"][slots] = -np.inf

    def take(self, slots: NDArray[np.integer]) -> Items:
        """A copy of the trajectories in `slots`."""
        return self._kind(**{name: value.take(slots, axis=0) for name, value in self._arrays.items()})  # type: ignore[arg-type]

    def column(self, name: str) -> NDArray[Any]:
        """One field of all stored items by slot, without copying; not to be written to."""
        return self._arrays[name][: self._size]

    @property
    def num_measurements(self) -> int:
        """Measurements that any item is of; all simulated ones count as one."""
        return sum(count > 0 for count in self._items_of.values())

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
        """Number of items stored after each of `slots`, evicted ones included: 0 for the newest."""
        return np.asarray(self._count - 1 - self._serial[slots])

    def slots_of_age(self, age: NDArray[np.integer]) -> NDArray[np.int64]:
        """Inverse of `age`: for ages below the number of items, or the window where eviction is by likelihood."""
        return self._slot_of[(self._count - 1 - age) % self.capacity]

    def slots_by_age(self) -> NDArray[np.int64]:
        """All slots in use, oldest first."""
        return np.argsort(self._serial[: self._size])

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
            arrays["serial"] = self._serial[: self._size].copy()
        scalars = {
            "capacity": self.capacity,
            "count": self._count,
            "first_generation": self._first_generation,
            "last_measurement": -1 if self._least_likely is None else self._least_likely.last_measurement,
            "duplicates": self.duplicates,
            "evictions": self.evictions,
        }
        return arrays, scalars

    def load_state_dict(
        self, arrays: Mapping[str, NDArray[np.generic]], scalars: Mapping[str, Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Restore; (slots in use, the saved slot of each).

        Where the budget gives the saved capacity the slots are what they were. Otherwise the items are stored anew in
        the order they came, so that of those too many the ones that eviction would choose are left out, and ids from
        before are all stale.
        """
        if self.capacity:
            raise RuntimeError(f"state must be loaded into an empty storage, this one holds {self._size} items")
        self.duplicates, self.evictions = scalars["duplicates"], scalars["evictions"]
        self._first_generation = scalars["first_generation"]
        if not arrays:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        own = {name: value for name, value in arrays.items() if name not in ("generation", "serial")}
        names = {field.name for field in fields(self._kind)}
        if not own.keys() <= names:
            raise ValueError(
                f"replay.store asks for {sorted(names)} of each item, but the checkpoint holds {sorted(own)}; "
                "set it to what it was"
            )
        saved = self._kind(**own)  # type: ignore[arg-type]
        generation = np.asarray(arrays["generation"], dtype=np.int64)
        serial = np.asarray(arrays["serial"], dtype=np.int64)
        self._allocate(saved)
        if self.capacity != scalars["capacity"]:
            self._first_generation = int(generation.max())
            self._generation[:] = self._first_generation
            return self._store_anew(saved, np.argsort(serial))
        self._size = len(saved)
        for name, value in saved.arrays().items():
            self._arrays[name][: self._size] = value
        self._generation[: self._size] = generation
        self._uids = set(saved.uid.tolist())
        self._items_of.update(problem_measurement(saved.measurement_id).tolist())
        by_age = np.argsort(serial)
        self._count, self._serial[: self._size] = scalars["count"], serial
        recent = by_age[self.age(by_age) < self.capacity]
        self._slot_of[serial[recent] % self.capacity] = recent
        if self._least_likely is not None:
            self._least_likely.last_measurement = scalars["last_measurement"]
            self._release(by_age[self.age(by_age) >= self._window])
        return np.arange(self._size), np.arange(self._size)

    def _store_anew(self, saved: Items, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._least_likely is None:
            self.evictions += max(len(order) - self.capacity, 0)
            order = order[-self.capacity :]
        origin = np.zeros(self.capacity, dtype=np.int64)
        step = self.capacity if self._least_likely is None else self._window
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            origin[self.append(saved.take(rows))] = rows
        return np.arange(self._size), origin[: self._size]

    def _allocate(self, trajectory: Items) -> None:
        arrays = trajectory.arrays()
        self.item_bytes = sum(value[:1].nbytes for value in arrays.values())
        fitting = self._byte_budget // self.item_bytes
        if fitting < self._min_items:
            raise ValueError(
                f"a budget of {self._byte_budget} bytes holds {fitting} items of {self.item_bytes} bytes, "
                f"but at least {self._min_items} are needed"
            )
        self.capacity = fitting if self._max_items is None else min(fitting, self._max_items)
        if self._least_likely is not None and self._window >= self.capacity:
            raise ValueError(
                f"the {self._window} newest items are safe from eviction by likelihood, so a shard must hold more than "
                f"these; a budget of {self._byte_budget} bytes holds {self.capacity} items of {self.item_bytes} bytes"
            )
        # Pages are taken from the system only as they are written, so an ample budget costs nothing up front.
        self._arrays = {
            name: self._empty((self.capacity, *value.shape[1:]), value.dtype) for name, value in arrays.items()
        }
        self._generation = np.full(self.capacity, self._first_generation, dtype=np.int64)
        self._serial = np.empty(self.capacity, dtype=np.int64)
        self._slot_of = np.empty(self.capacity, dtype=np.int64)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        if self._spill is None or len(shape) == 1:
            return np.empty(shape, dtype)
        return mapped_array(Path(self._spill), shape, dtype)

    def _check_fits(self, trajectory: Items) -> None:
        got = {name: (value.shape[1:], str(value.dtype)) for name, value in trajectory.arrays().items()}
        expected = {name: (value.shape[1:], str(value.dtype)) for name, value in self._arrays.items()}
        if got.keys() != expected.keys():
            raise ValueError(f"expected trajectories with {sorted(expected)}, got {sorted(got)}")
        for name in expected:
            if got[name] != expected[name]:
                raise ValueError(f"{name} of one item: expected {expected[name]}, got {got[name]}")
        if self._least_likely is not None and len(trajectory) > self._window:
            raise ValueError(f"one insert must fit the window of {self._window} items, got {len(trajectory)}")
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
