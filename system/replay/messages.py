"""What goes in and out of a replay shard, besides trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion.trajectory import Trajectory

__all__ = ["InsertReply", "ItemIds", "ReplayBatch", "ShardStats"]


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

    trajectory: Trajectory
    """The B trajectories; in grouped draws those of a group are next to each other."""
    ids: ItemIds
    """Their names, to report residuals under."""
    probability: NDArray[np.float64]
    """[B] exact marginal probability with which one row of the draw is this item, within its shard."""


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
    """Items stored."""
    samples: int
    """Items drawn."""
    duplicates: int
    """Items skipped because their uid was stored."""
    refused: int
    """Items skipped because of a NaN or +inf."""
    evictions: int
    """Items overwritten, or left out when a snapshot was loaded into a smaller budget."""
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
