"""Settings of a replay shard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from system.replay.priority import PRIORITY_NAMES, PriorityName
from system.replay.rate_limiter import RateLimiter, smallest_tolerance
from system.replay.storage import EvictBy

__all__ = ["ReplayConfig", "StoreKind"]

StoreKind = Literal["paths", "endpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How one replay shard stores, draws and paces."""

    capacity_bytes: int = 256 * 2**20
    """Bytes of trajectories a shard may hold."""
    max_items: int | None = None
    """Items a shard may hold, where that is less than the bytes would allow."""
    store: StoreKind = "paths"
    """Whole paths, or endpoints: x alone, to which a path is drawn anew by noising each time it is used."""
    spill_directory: str | None = None
    """Where states lie in files mapped into memory, for budgets above the machine's memory; null keeps them in it."""
    evict_by: EvictBy = "age"
    """What makes room in a full shard: the oldest (age), or beyond the newest window the least likely (likelihood)."""
    priority: PriorityName | dict[PriorityName, float] = "uniform"
    """Mass of an item among the prioritised draws: uniform, residual, likelihood, importance, rank or reshuffled;
    or several with their shares, as in {residual: 0.5, likelihood: 0.5}."""
    priority_exponent: float = 1.0
    """Power of the residual, likelihood or importance weight; below one is flatter."""
    truncation: float = 0.5
    """An importance weight is capped at mean(w) n^truncation, n items of its measurement; 1 is no cap."""
    newest_share: float = 0.5
    """Share of every draw taken uniformly from the newest items; the rest is prioritised."""
    newest_window: int = 1024
    """How many items count as the newest."""
    group_size: int = 1
    """Trajectories of the same measurement drawn together; above one a draw is O(N) instead of O(log N)."""
    max_staleness: int | None = None
    """Updates of the weights by which the policy of an item may be behind that of the newest: older ones, in the order
    in which they came, are no longer drawn. null: no limit, as the objective is right off-policy."""
    samples_per_insert: float | None = 4.0
    """How often an item is drawn on average; None lets both sides run free."""
    min_size: int = 256
    """Items to be inserted before the first draw."""
    tolerance: float | None = None
    """Items drawn that the pace may be off by; None is twice the least possible, or a tenth of the first fill."""
    insert_batch: int | None = None
    """Most items an actor inserts at once; None is the actors' batch size."""
    sample_batch: int | None = None
    """Most items the learner draws at once; None is the learner's batch size."""
    retry_seconds: float = 0.05
    """How long an actor is asked to wait when its insert is not accepted."""

    def __post_init__(self) -> None:
        unknown = [str(name) for name in self.priorities if name not in PRIORITY_NAMES]
        if unknown:
            raise ValueError(f"priority must be of {', '.join(PRIORITY_NAMES)}, got {', '.join(unknown)}")
        shares = self.priorities.values()
        if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of priority must be positive and sum to 1, got {dict(self.priorities)}")
        for name in ("capacity_bytes", "newest_window", "group_size", "min_size", "insert_batch", "sample_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_items is not None and self.max_items < self.min_items:
            raise ValueError(
                f"max_items must hold min_size = {self.min_size} and insert_batch = {self.batches[0]} items, "
                f"got {self.max_items}"
            )
        if not 0 < self.priority_exponent <= 10:
            raise ValueError(
                f"priority_exponent must be in (0, 10], got {self.priority_exponent}; "
                "equal masses are priority = 'uniform'"
            )
        if not 0 <= self.newest_share <= 1:
            raise ValueError(f"newest_share must be in [0, 1], got {self.newest_share}")
        if not 0 <= self.truncation <= 1:
            raise ValueError(f"truncation must be in [0, 1], got {self.truncation}")
        if not (self.retry_seconds >= 0 and math.isfinite(self.retry_seconds)):
            raise ValueError(f"retry_seconds must be finite and not negative, got {self.retry_seconds}")
        if self.max_staleness is not None and self.max_staleness < 0:
            raise ValueError(f"max_staleness must be at least 0 or null, got {self.max_staleness}")
        if self.evict_by == "likelihood":
            self._check_eviction_by_likelihood()
        if self.group_size > 1 and "reshuffled" in self.priorities:
            raise ValueError(
                "priority reshuffled draws without replacement and groups are drawn with it; set group_size to 1 or "
                f"take another priority than reshuffled, got group_size {self.group_size}"
            )
        if self.tolerance is None or (self.insert_batch and self.sample_batch):
            self.rate_limiter()  # what tolerance is enough is known with the batches

    def _check_eviction_by_likelihood(self) -> None:
        if self.max_staleness is not None:
            raise ValueError(
                f"evict_by likelihood keeps items however old, which max_staleness {self.max_staleness} does not draw; "
                "set max_staleness to null or evict_by to age"
            )
        if "importance" in self.priorities:
            raise ValueError(
                "priority importance stands for the posterior only if what is stored is what the actors made, which "
                "evict_by likelihood makes a selection of; set evict_by to age or take another priority"
            )
        if self.max_items is not None and self.newest_window >= self.max_items:
            raise ValueError(
                f"evict_by likelihood spares the newest_window = {self.newest_window} newest items, so max_items must "
                f"be more than that, got {self.max_items}"
            )
        if self.newest_window < (self.insert_batch or 0):
            raise ValueError(
                f"evict_by likelihood spares the newest_window newest items, which must hold one insert of "
                f"{self.insert_batch}, got {self.newest_window}"
            )

    @property
    def priorities(self) -> dict[PriorityName, float]:
        """Share of each priority in the prioritised part of a draw, sum 1."""
        return self.priority if isinstance(self.priority, dict) else {self.priority: 1.0}

    def shares(self, newest: bool = True) -> NDArray[np.float64]:
        """[1 + C] share of the newest and of each priority in a draw, sum 1; the newest have none without `newest`."""
        newest_share = self.newest_share if newest else 0.0
        prioritised = (1 - newest_share) * np.array(list(self.priorities.values()))
        return np.concatenate([[newest_share], prioritised])

    @property
    def min_items(self) -> int:
        """Fewest items the byte budget has to hold."""
        return max(self.min_size, self.batches[0])

    @property
    def batches(self) -> tuple[int, int]:
        """Most items (inserted, drawn) at once, with the defaults of a shard that stands alone."""
        return self.insert_batch or 64, self.sample_batch or 256

    def rate_limiter(self) -> RateLimiter:
        """A limiter with these settings, at zero; ValueError where the settings could never be met."""
        tolerance = self.tolerance
        if tolerance is None and self.samples_per_insert is not None:
            least = smallest_tolerance(self.samples_per_insert, *self.batches)
            tolerance = max(2 * least, 0.1 * self.samples_per_insert * self.min_size)
        return RateLimiter(
            self.samples_per_insert,
            self.min_size,
            tolerance or 0.0,
            insert_batch=self.batches[0],
            sample_batch=self.batches[1],
        )
