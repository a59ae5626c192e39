"""A replay shard: storage, masses, draws and pace of one part of the replay.

A plain object that never waits: an insert or a sample that has to wait is told so and tried again by the caller, since
a shard that slept inside an insert could not serve the sample which that insert is waiting for.

    reply = shard.insert(trajectory)            # reply.accepted is False: try again after reply.retry_after
    batch = shard.sample(256)                   # None: try again later
    shard.update_priorities(batch.ids, residuals)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.exploration import StartBy
from diffusion.end_points import EndPoints
from diffusion.trajectory import Trajectory
from system.replay.config import ReplayConfig
from system.replay.draws import MeasurementOrder, Mixture
from system.replay.messages import InsertReply, ItemIds, LogTotals, ReplayBatch, ShardMass, ShardStats, Weighting
from system.replay.priority import possible
from system.replay.registry import build_priority
from system.replay.storage import Items, TrajectoryStorage
from system.replay.tournament import log_choice_ratio, tournament

__all__ = ["ReplayShard", "is_storable"]

EXPIRED_AT_ONCE = 1024  # items looked at
LARGEST_TOURNAMENT = 1024  # entrants, where there are many measurements
TOURNAMENT = 8  # items that compete to be a start; the winner is of the best ninth on average


class ReplayShard:
    """Shard number `index` of the replay."""

    def __init__(self, config: ReplayConfig, index: int, seed: int | np.random.SeedSequence) -> None:
        self._config = config
        self._index = index
        if not isinstance(seed, np.random.SeedSequence):
            seed = np.random.SeedSequence(seed, spawn_key=(index,))
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._storage = TrajectoryStorage(
            config.capacity_bytes,
            config.max_items,
            config.min_items,
            evict_by=config.evict_by,
            window=config.newest_window,
            spill=config.spill_directory,
            kind=EndPoints if config.store == "endpoints" else Trajectory,
        )
        self._priorities = {
            name: build_priority(name, config.priority_exponent, config.truncation) for name in config.priorities
        }
        self._limiter = config.rate_limiter()
        self._order: MeasurementOrder | None = None
        self._residual = np.zeros(0, dtype=np.float32)  # |delta| by slot, as last reported
        self._newest_version = 0
        self._fresh = 0  # newest items, those before them are too stale to be drawn
        self._refused = 0
        self._filtered = 0
        self._late_priorities = 0
        self._nonfinite_priorities = 0

    def __len__(self) -> int:
        return len(self._storage)

    def has_room(self, count: int) -> bool:
        """Whether an insert of `count` items would be accepted now; asked before they are made, they are fresh."""
        return self._limiter.can_insert(count)

    @property
    def floors(self) -> dict[int, float]:
        """By measurement, the log-likelihood below which an item is not worth sending: see `eviction`."""
        return {} if self._config.newest_share > 0 else self._storage.floors()

    def insert(self, trajectory: Items, filtered: int = 0) -> InsertReply:
        """Store what is new and sound in `trajectory`, or its ends, unless samples have to catch up first.

        `filtered` items made with these were not worth sending; for the pace they count as stored.
        """
        if not self._limiter.can_insert(len(trajectory) + filtered):
            return InsertReply(accepted=False, retry_after=self._config.retry_seconds)
        if self._config.store == "endpoints" and isinstance(trajectory, Trajectory):
            trajectory = EndPoints.of(trajectory)
        storable = is_storable(trajectory)
        refused = int(np.count_nonzero(~storable))
        sound = trajectory.take(np.flatnonzero(storable)) if refused else trajectory
        slots = self._storage.append(sound)
        self._refused += refused
        self._filtered += filtered
        if len(slots):
            if not len(self._residual):
                self._residual = np.empty(self._storage.capacity, dtype=np.float32)
            self._residual[slots] = np.inf  # not known yet, so as good as the largest
            for priority in self._priorities.values():
                priority.place(self._storage, slots)
            # Of what came last: a learner that went back to its checkpoint goes on with smaller versions.
            self._newest_version = int(sound.policy_version.max())
            self._fresh = min(self._fresh + len(slots), len(self))
            self._expire()
            self._order = None
        self._limiter.inserted(len(slots) + filtered)
        duplicates = len(sound) - len(slots)
        return InsertReply(accepted=True, stored=len(slots), duplicates=duplicates, refused=refused, floors=self.floors)

    def _expire(self) -> None:
        """Leaves what has become too stale out of all draws, oldest first."""
        if self._config.max_staleness is None:
            return
        version = self._storage.column("policy_version")
        while self._fresh:
            slots = self._storage.slots_of_age(
                np.arange(self._fresh - 1, max(self._fresh - EXPIRED_AT_ONCE, 0) - 1, -1)
            )
            stale = version[slots] < self._newest_version - self._config.max_staleness
            slots = slots[: len(stale) if stale.all() else int(stale.argmin())]
            if not len(slots):
                break
            self._storage.expire(slots)
            for priority in self._priorities.values():
                priority.place(self._storage, slots)
            self._fresh -= len(slots)

    @property
    def _window(self) -> int:
        """Items that count as the newest."""
        return min(self._config.newest_window, self._fresh)

    def mass(self) -> ShardMass:
        """What the choice among several shards needs to know of this one."""
        return ShardMass(
            size=len(self),
            newest=self._window,
            totals=np.array([priority.total for priority in self._priorities.values()]),
            log_totals=tuple(priority.log_totals() for priority in self._priorities.values()),
        )

    def refer(self, log_totals: Sequence[LogTotals]) -> None:
        """Take in what the items of all shards weigh together, for each priority."""
        for priority, totals in zip(self._priorities.values(), log_totals, strict=True):
            priority.refer(totals)

    def take_turn(self, batch_size: int) -> bool:
        """Count a draw of `batch_size` items that another shard gives, if this one's pace allows it now."""
        rows = self._paced(batch_size)
        allowed = self._limiter.can_sample(rows)
        if allowed:
            self._limiter.sampled(rows)
        return allowed

    def _paced(self, batch_size: int) -> int:
        """Items that a draw counts for the pace: none counts more than `sample_batch`."""
        return min(batch_size, self._config.batches[1])

    def sample(
        self, batch_size: int, weighting: Weighting | None = None, *, newest: bool = True, counted: bool = True
    ) -> ReplayBatch | None:
        """Draw `batch_size` items with replacement; None while inserts have to catch up first.

        `newest` False leaves the share of the newest items to the prioritised ones. For the rate limiter no draw
        counts more than `sample_batch` items: larger ones are of paths that are used in part. One of several shards is
        told by `weighting` how to draw; where not `counted`, another took the turn.
        """
        group_size = self._config.group_size
        if batch_size < 1 or batch_size % group_size:
            raise ValueError(f"batch_size must be a positive multiple of group_size = {group_size}, got {batch_size}")
        rows = self._paced(batch_size)
        if (counted and not self._limiter.can_sample(rows)) or not len(self):
            return None
        shares = self._config.shares(newest) if weighting is None else weighting.shares
        mixture = Mixture(tuple(self._priorities.values()), shares, self._storage, self._window)
        if group_size > 1 and self._order is None:
            self._order = MeasurementOrder(self._storage)
        if self._order is not None and len(self._order) > 1:
            draw = mixture.draw_groups(batch_size // group_size, group_size, self._order, self._generator)
        else:
            draw = mixture.draw(batch_size, self._generator)
        slots, probability = draw
        if counted:
            self._limiter.sampled(rows)
        if weighting is not None:
            probability = weighting.choice * probability
        return ReplayBatch(
            trajectory=self._storage.take(slots),
            ids=ItemIds(
                shard=np.full(batch_size, self._index, dtype=np.int64),
                slot=slots,
                generation=self._storage.generation(slots),
            ),
            probability=probability,
        )

    def starts(self, count: int, by: StartBy) -> Items | None:
        """Stored trajectories for actors to go on from, with replacement; None while there are none.

        By age: any of the newest window. Otherwise the winners of tournaments, the likeliest or the one of largest
        residual among items of the same measurement, whose `log_behaviour_ratio` takes the choice in: with it the
        importance weights of the starts are right, see `system.replay.tournament`. Items of simulated measurements have
        few rivals, and are passed over then. The rate limiter does not count starts.
        """
        size = len(self._storage)
        if size < 1:
            return None
        slots = self._storage.slots_of_age(np.arange(self._window)) if by == "age" else np.arange(size)
        slots = slots[self._storage.age(slots) < self._fresh]
        if by != "age":
            slots = slots[self._storage.column("measurement_id")[slots] >= 0]
        if not len(slots):
            return None
        if by == "age":
            return self._storage.take(slots[self._generator.integers(len(slots), size=count)])
        score = self._residual[:size] if by == "residual" else self._storage.column("log_likelihood")
        score, measurement_id = score[slots], self._storage.column("measurement_id")[slots]
        # As many times more entrants as there are measurements: on average TOURNAMENT are then of the first one's.
        entrants = min(TOURNAMENT * self._storage.num_measurements, LARGEST_TOURNAMENT)
        winners = tournament(score, measurement_id, count, entrants, self._generator)
        stored = self._storage.take(slots[winners])
        ratio = log_choice_ratio(score, measurement_id, winners, entrants).astype(np.float32)
        return dataclasses.replace(stored, log_behaviour_ratio=stored.log_behaviour_ratio + ratio)

    def update_priorities(self, ids: ItemIds, residuals: ArrayLike) -> int:
        """Take in the learner's residuals [B]; how many were not ignored as late or not finite."""
        values = np.asarray(residuals, dtype=np.float64)
        if values.shape != (len(ids),):
            raise ValueError(f"residuals must be [{len(ids)}] to match the ids, got {values.shape}")
        if np.any(ids.shard != self._index):
            raise ValueError(f"ids must be of shard {self._index}, got {np.unique(ids.shard).tolist()}")
        current = self._storage.is_current(ids.slot, ids.generation)
        finite = np.isfinite(values)
        self._late_priorities += int(np.count_nonzero(~current))
        self._nonfinite_priorities += int(np.count_nonzero(current & ~finite))
        drawable = np.zeros(len(ids), dtype=np.bool_)
        drawable[current] = possible(self._storage, ids.slot[current])
        usable = current & finite & drawable
        if usable.any():
            self._residual[ids.slot[usable]] = np.minimum(np.abs(values[usable]), np.finfo(np.float32).max)
            for priority in self._priorities.values():
                priority.learn(ids.slot[usable], values[usable])
        return int(np.count_nonzero(usable))

    def stats(self) -> ShardStats:
        """Counters."""
        return ShardStats(
            size=len(self._storage),
            capacity=self._storage.capacity,
            bytes=len(self._storage) * self._storage.item_bytes,
            inserts=self._limiter.inserts,
            samples=self._limiter.samples,
            duplicates=self._storage.duplicates,
            refused=self._refused,
            filtered=self._filtered,
            evictions=self._storage.evictions,
            stale=len(self._storage) - self._fresh,
            late_priorities=self._late_priorities,
            nonfinite_priorities=self._nonfinite_priorities,
            blocked_inserts=self._limiter.blocked_inserts,
            blocked_samples=self._limiter.blocked_samples,
            samples_per_insert=self._limiter.realised_samples_per_insert,
            samples_per_insert_error=self._limiter.samples_per_insert_error,
        )

    def retire_ids(self) -> None:
        """Treat all ids handed out so far as late; for a shard restored after a crash, see `TrajectoryStorage`."""
        self._storage.retire_ids()

    def state_dict(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Arrays, and a dictionary fit for JSON: together all there is to go on with the same draws."""
        stored, storage = self._storage.state_dict()
        arrays: dict[str, NDArray[np.generic]] = {f"storage.{name}": value for name, value in stored.items()}
        arrays["residual"] = self._residual[: len(self)].copy()
        for name, priority in self._priorities.items():
            arrays |= {f"priority.{name}.{key}": value for key, value in priority.state_dict().items()}
        scalars = {
            "storage": storage,
            "limiter": self._limiter.state_dict(),
            "generator": self._generator.bit_generator.state,
            "priority": self._priority_settings(),
            "refused": self._refused,
            "filtered": self._filtered,
            "late_priorities": self._late_priorities,
            "nonfinite_priorities": self._nonfinite_priorities,
        }
        return arrays, scalars

    def load_state_dict(self, arrays: Mapping[str, NDArray[np.generic]], scalars: Mapping[str, Any]) -> None:
        """Restore; a smaller byte budget keeps the newest items, another priority gives them masses anew."""
        slots, origin = self._storage.load_state_dict(_under("storage.", arrays), scalars["storage"])
        if len(slots):
            self._residual = np.empty(self._storage.capacity, dtype=np.float32)
            self._residual[slots] = arrays["residual"][origin]
            same_slots = scalars["storage"]["capacity"] == self._storage.capacity
            if same_slots and scalars["priority"] == self._priority_settings():
                for name, priority in self._priorities.items():
                    priority.load_state_dict(_under(f"priority.{name}.", arrays), self._storage.capacity)
            else:
                self._place_anew(slots)
            self._newest_version = int(self._storage.column("policy_version").max())
            self._fresh = len(slots)
            self._expire()
        self._limiter.load_state_dict(scalars["limiter"])
        if scalars["generator"] is not None:
            self._generator.bit_generator.state = scalars["generator"]
        self._refused = scalars["refused"]
        self._filtered = scalars["filtered"]
        self._late_priorities = scalars["late_priorities"]
        self._nonfinite_priorities = scalars["nonfinite_priorities"]

    def _place_anew(self, slots: NDArray[np.int64]) -> None:
        """Masses of all items in `slots`; those whose residual is known come first, as the others take the largest."""
        known = np.isfinite(self._residual[slots])
        for priority in self._priorities.values():
            if known.any():
                priority.place(self._storage, slots[known])
                priority.learn(slots[known], self._residual[slots[known]].astype(np.float64))
            if not known.all():
                priority.place(self._storage, slots[~known])

    def _priority_settings(self) -> dict[str, Any]:
        return {
            "names": list(self._config.priorities),
            "exponent": self._config.priority_exponent,
            "truncation": self._config.truncation,
        }


def is_storable(trajectory: Items) -> NDArray[np.bool_]:
    """[B] False where a number is NaN or a log-weight +inf: one such item would spoil every sum it is part of."""
    with np.errstate(invalid="ignore"):  # -inf + inf is NaN, which is what is asked for here
        log_importance = trajectory.log_importance
    storable: NDArray[np.bool_] = (log_importance < np.inf) & (trajectory.log_likelihood < np.inf)
    for name, numbers in trajectory.arrays().items():
        if numbers.ndim > 1 or name == "measurement":
            storable &= np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim)))
    return storable


def _under(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
