"""What goes in and out of a replay shard, besides trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion.end_points import EndPoints
from diffusion.trajectory import Trajectory

__all__ = ["InsertReply", "ItemIds", "LogTotals", "ReplayBatch", "ShardMass", "ShardStats", "Weighting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemIds:
    """Names of B stored items, valid for ever: a slot's generation grows with every item written to it."""

    shard: NDArray[np.int64]
    """[B] index of the shard."""
    slot: NDArray[np.int64]
    """[B] place in the shard."""
    generation: NDArray[np.int64]
    """[B] how often the slot had been written when the item was there."""

    def __post_init__(self) -> None:
        if not self.shard.shape == self.slot.shape == self.generation.shape == (len(self.slot),):
            raise ValueError(
                "shard, slot and generation must be [B] alike, "
                f"got {self.shard.shape}, {self.slot.shape} and {self.generation.shape}"
            )

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> ItemIds:
        """The ids at `rows`."""
        return ItemIds(shard=self.shard[rows], slot=self.slot[rows], generation=self.generation[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayBatch:
    """One draw of B items, with replacement."""

    trajectory: Trajectory | EndPoints
    """The B items; in grouped draws those of a group are next to each other."""
    ids: ItemIds
    """Their names, to report residuals under."""
    probability: NDArray[np.float64]
    """[B] exact marginal probability with which one row of the draw is this item; over all shards where a `Weighting`
    was given, else within its shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTotals:
    """What the items of every measurement weigh together, by which shards compare."""

    measurement: NDArray[np.int64]
    """[M] ids, ascending."""
    log_total: NDArray[np.float64]
    """[M] log of the sum of weights; -inf where no item has any."""

    @classmethod
    def nothing(cls) -> LogTotals:
        """Of no measurement."""
        return cls(measurement=np.zeros(0, dtype=np.int64), log_total=np.zeros(0))

    @classmethod
    def together(cls, parts: Sequence[LogTotals]) -> LogTotals:
        """Of all shards."""
        ids = np.concatenate([part.measurement for part in parts])
        measurement, row = np.unique(ids, return_inverse=True)
        log_total = np.full(len(measurement), -np.inf)
        np.logaddexp.at(log_total, row, np.concatenate([part.log_total for part in parts]))
        return cls(measurement=measurement, log_total=log_total)

    def log_share(self, measurement: NDArray[np.int64], log_total: NDArray[np.float64]) -> NDArray[np.float64]:
        """[M] log of the share that one shard's `log_total` is of these; 0 where these do not know of it yet."""
        share = np.zeros(len(measurement))
        _, own, ours = np.intersect1d(measurement, self.measurement, assume_unique=True, return_indices=True)
        known = np.isfinite(self.log_total[ours]) & np.isfinite(log_total[own])
        share[own[known]] = np.minimum(log_total[own[known]] - self.log_total[ours[known]], 0.0)
        return share


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMass:
    """What one shard holds, for the choice among shards."""

    size: int
    """Items."""
    newest: int
    """Items in the newest window."""
    totals: NDArray[np.float64]
    """[C] mass of all items under each of the priorities."""
    log_totals: tuple[LogTotals, ...]
    """[C] and by measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """How a shard is to draw, as one of several."""

    choice: float
    """Probability with which this shard was chosen."""
    shares: NDArray[np.float64]
    """[1 + C] shares of the newest and of each priority in the draw, sum 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertReply:
    """What became of an insert."""

    accepted: bool
    """False: nothing was stored, because samples have to catch up first; try again."""
    stored: int = 0
    """Items stored."""
    duplicates: int = 0
    """Items skipped because their uid is stored already."""
    refused: int = 0
    """Items skipped because a number in them is NaN or a log-weight +inf."""
    floors: Mapping[int, float] = field(default_factory=dict)
    """By measurement, the log-likelihood below which a new item would be evicted at once; none while there is room."""
    retry_after: float = 0.0
    """Seconds to wait before trying again, where not accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStats:
    """Counters of one shard since the run began, restarts included."""

    size: int
    """Items stored now."""
    capacity: int
    """Items that fit the byte budget; 0 before the first insert."""
    bytes: int
    """Bytes of trajectories stored now."""
    inserts: int
    """Items stored, or made and filtered."""
    samples: int
    """Items drawn."""
    duplicates: int
    """Items skipped because their uid was stored."""
    refused: int
    """Items skipped because of a NaN or +inf."""
    filtered: int
    """Items that actors did not send because they would have been evicted at once."""
    evictions: int
    """Items overwritten, or left out when a snapshot was loaded into a smaller budget."""
    stale: int
    """Items stored that `max_staleness` keeps from being drawn."""
    late_priorities: int
    """Residuals ignored because their item had been overwritten."""
    nonfinite_priorities: int
    """Residuals ignored because they were NaN or infinite."""
    blocked_inserts: int
    """Inserts, and questions for room before them, that were told to wait."""
    blocked_samples: int
    """Samples that were told to wait."""
    samples_per_insert: float
    """Realised samples per insert since `min_size` was reached."""
    samples_per_insert_error: float
    """Realised over target samples per insert, minus one; 0 without a target."""
