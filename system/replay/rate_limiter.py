"""The rate limiter: keeps the number of samples per insert near a target, without ever waiting itself.

error = samples - (inserts - min_size) * samples_per_insert,   kept within [-tolerance, tolerance]

counted in items. An insert that would take the error below the band is refused, a sample that would take it above is
refused; the caller tries again later. Below `min_size` inserts are free and samples refused (the semantics of Reverb,
Cassirer et al. 2021, section 3.3). Because the error is bounded, samples / (inserts - min_size) tends to the target.

Both sides are refused at once only if

    tolerance - sample_batch < error < insert_batch * samples_per_insert - tolerance

which no error satisfies when  2 tolerance >= sample_batch + insert_batch * samples_per_insert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["RateLimiter", "smallest_tolerance", "split_limiters"]


def smallest_tolerance(samples_per_insert: float, insert_batch: int, sample_batch: int) -> float:
    """Half width of the narrowest band in which one of the two sides can always go on."""
    return (sample_batch + insert_batch * samples_per_insert) / 2


class RateLimiter:
    """Says whether an insert of at most `insert_batch`, a sample of at most `sample_batch` items may go ahead."""

    def __init__(
        self,
        samples_per_insert: float | None,
        min_size: int,
        tolerance: float,
        insert_batch: int = 1,
        sample_batch: int = 1,
    ) -> None:
        if min_size < 1 or insert_batch < 1 or sample_batch < 1:
            raise ValueError(
                "min_size, insert_batch and sample_batch must be at least 1, "
                f"got {min_size}, {insert_batch} and {sample_batch}"
            )
        if samples_per_insert is not None:
            if not 0 < samples_per_insert < float("inf"):
                raise ValueError(f"samples_per_insert must be positive or None, got {samples_per_insert}")
            needed = smallest_tolerance(samples_per_insert, insert_batch, sample_batch)
            if not tolerance >= needed:
                raise ValueError(
                    f"tolerance must be at least {needed} for inserts of {insert_batch}, samples of {sample_batch} "
                    f"and {samples_per_insert} samples per insert, or both sides could wait for ever; got {tolerance}"
                )
        self._samples_per_insert = samples_per_insert
        self._min_size = min_size
        self._tolerance = tolerance
        self._insert_batch = insert_batch
        self._sample_batch = sample_batch
        self.inserts = 0
        self.samples = 0
        self.blocked_inserts = 0
        self.blocked_samples = 0

    @property
    def error(self) -> float:
        """Samples ahead of (above zero) or behind the target, counted since `min_size` was reached."""
        if self._samples_per_insert is None or self.inserts < self._min_size:
            return 0.0
        return self.samples - (self.inserts - self._min_size) * self._samples_per_insert

    @property
    def realised_samples_per_insert(self) -> float:
        """Samples per insert since `min_size` was reached; 0 until there is an insert to divide by."""
        return self.samples / (self.inserts - self._min_size) if self.inserts > self._min_size else 0.0

    @property
    def samples_per_insert_error(self) -> float:
        """Realised over target samples per insert, minus one; 0 where there is no target or nothing to divide by."""
        if self._samples_per_insert is None or self.inserts <= self._min_size:
            return 0.0
        return self.realised_samples_per_insert / self._samples_per_insert - 1

    def can_insert(self, count: int) -> bool:
        """Whether `count` items may be inserted now; a refusal is counted."""
        if self._samples_per_insert is not None and count > self._insert_batch:
            raise ValueError(f"inserts were announced as at most {self._insert_batch} items, got {count}")
        allowed = (
            self._samples_per_insert is None
            or self.inserts < self._min_size
            or self.error - count * self._samples_per_insert >= -self._tolerance
        )
        self.blocked_inserts += not allowed
        return allowed

    def can_sample(self, count: int) -> bool:
        """Whether `count` items may be sampled now; a refusal is counted."""
        if self._samples_per_insert is not None and count > self._sample_batch:
            raise ValueError(f"samples were announced as at most {self._sample_batch} items, got {count}")
        allowed = self.inserts >= self._min_size and (
            self._samples_per_insert is None or self.error + count <= self._tolerance
        )
        self.blocked_samples += not allowed
        return allowed

    def inserted(self, count: int) -> None:
        """Note that `count` items were stored."""
        self.inserts += count

    def sampled(self, count: int) -> None:
        """Note that `count` items were sampled."""
        self.samples += count

    def state_dict(self) -> dict[str, Any]:
        """The counters, and the first fill that they are counted from."""
        return {name: getattr(self, name) for name in _COUNTERS} | {"min_size": self._min_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counters; the settings stay those of the constructor, but a first fill that is over is over."""
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        if self.inserts >= state["min_size"]:
            self._min_size = int(state["min_size"])


def split_limiters(states: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """States of `count` limiters that together have counted what those of `states` have.

    The sum of their errors stays what it was, so the pace goes on: what counted as first fill is split like the rest.
    Where no limiter had its first fill yet, none of the new ones has.
    """
    total = {name: sum(int(state[name]) for state in states) for name in _COUNTERS}
    total["min_size"] = sum(min(state["inserts"], state["min_size"]) for state in states)
    if all(state["inserts"] < state["min_size"] for state in states):
        total["min_size"] = total["inserts"] + count
    return [{name: (value + count - 1 - index) // count for name, value in total.items()} for index in range(count)]


_COUNTERS = ("inserts", "samples", "blocked_inserts", "blocked_samples")
