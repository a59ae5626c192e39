"""What runs in the processes of a distributed run. Plain classes; `system.distributed.runner` makes Ray actors of them.

    RolloutWorker --insert--> ShardWorker --sample--> LearnerWorker --priorities--> ShardWorker
          ^---------------------- WeightStore <--publish--------------|

The driver gives rollout and learner workers slices of a second or two of work, two at a time, so that none is ever
idle, and hears from each when a slice ends: that is their heartbeat. Tensors go from worker to worker only.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from numpy.typing import ArrayLike

from actors.exploration import StartBy
from diffusion.end_points import EndPoints
from diffusion.trajectory import Trajectory
from system.assembly import build_actor, build_problem, build_shard
from system.config import RunConfig
from system.part import Part, write_part
from system.replay.eviction import worth_sending
from system.replay.messages import InsertReply, ItemIds, LogTotals, ReplayBatch, ShardMass, Weighting
from system.replay.storage import Items
from system.runner import as_paths, state_part

__all__ = ["Peers", "RolloutWorker", "ShardWorker", "WeightStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Handles of those a worker talks to; sent along with every slice, as any of them may have been replaced."""

    shards: tuple[Any, ...]
    """Replay shards."""
    store: Any
    """The weight store."""
    timeout: float
    """Seconds after which a silent peer is given up, and the slice with it."""


class WeightStore:
    """Holds references to the newest weights; never the weights themselves."""

    def __init__(self) -> None:
        # The last two: a reader may be about to fetch the older one.
        self._published: deque[tuple[int, float, list[Any]]] = deque(maxlen=2)

    def ready(self) -> bool:
        """True once the process is up."""
        return True

    def publish(self, version: int, progress: float, reference: list[Any]) -> None:
        """Takes `[reference]` of the flat weights of `version`; in a list, so that Ray does not fetch it."""
        self._published.append((version, progress, reference))

    def latest(self, have: int) -> tuple[int, float, list[Any]] | None:
        """(version, progress, [reference]) if other than version `have`: a learner that was restored goes back."""
        if self._published and self._published[-1][0] != have:
            return self._published[-1]
        return None


class ShardWorker:
    """A replay shard in its own process."""

    def __init__(self, config: RunConfig, index: int) -> None:
        self._index = index
        self._shard = build_shard(config, index)

    def ready(self) -> bool:
        """True once the process is up."""
        return True

    def has_room(self, count: int) -> bool:
        """See `ReplayShard.has_room`."""
        return self._shard.has_room(count)

    def insert(self, trajectory: Items, filtered: int = 0) -> InsertReply:
        """See `ReplayShard.insert`."""
        return self._shard.insert(trajectory, filtered)

    def sample(
        self, batch_size: int, weighting: Weighting | None = None, *, newest: bool = True, counted: bool = True
    ) -> ReplayBatch | None:
        """See `ReplayShard.sample`."""
        return self._shard.sample(batch_size, weighting, newest=newest, counted=counted)

    def take_turn(self, batch_size: int) -> bool:
        """See `ReplayShard.take_turn`."""
        return self._shard.take_turn(batch_size)

    def mass(self) -> ShardMass:
        """See `ReplayShard.mass`."""
        return self._shard.mass()

    def refer(self, log_totals: tuple[LogTotals, ...]) -> None:
        """See `ReplayShard.refer`."""
        self._shard.refer(log_totals)

    def starts(self, count: int, by: StartBy) -> Items | None:
        """See `ReplayShard.starts`."""
        return self._shard.starts(count, by)

    def update_priorities(self, ids: ItemIds, residuals: ArrayLike) -> None:
        """See `ReplayShard.update_priorities`."""
        self._shard.update_priorities(ids, residuals)

    def stats(self) -> dict[str, float]:
        """The shard's counters."""
        return dataclasses.asdict(self._shard.stats())

    def save(self, directory: Path) -> str:
        """Writes the shard into a checkpoint that is being made, and returns the part's name."""
        write_part(directory, f"replay-{self._index}", state_part(self._shard.state_dict()))
        return f"replay-{self._index}"

    def load(self, part: Part, crashed: bool) -> dict[str, float]:
        """Restores a snapshot and returns its counters; after a crash, ids handed out since then are void."""
        self._shard.load_state_dict(part.arrays, part.scalars)
        if crashed:
            self._shard.retire_ids()
        return self.stats()


class RolloutWorker:
    """An actor in its own process: pulls weights, pushes trajectories."""

    def __init__(self, config: RunConfig, index: int, life: int) -> None:
        os.nice(4)  # where they share cores, the learner goes first: actors can always make more
        torch.set_num_threads(1)
        self._config, self._index = config, index
        problem = build_problem(config)
        # Before the driver takes it for hung: who says what it waits for is told from who is silent.
        limit = min(problem.time_limit or math.inf, config.ray.timeout_seconds / 2)
        self._problem = dataclasses.replace(problem, time_limit=limit)
        self._actor = build_actor(config, self._problem, index, life)
        self._pending: Items | None = None
        self._floors: Mapping[int, float] = {}  # as the shard that was inserted into last said
        self._next_shard = index
        self._overrun = 0.0  # calls of the likelihood beyond those allowed, which the next slice has less

    def ready(self) -> bool:
        """True once the process is up."""
        return True

    def work(self, seconds: float, peers: Peers, calls: int | None = None) -> dict[str, Any]:
        """Makes trajectories for `seconds`, or until the likelihood was called `calls` times; counts, and the time."""
        start = time.perf_counter()
        made, blocked, acting = 0, 0.0, 0.0
        counted = self._problem.calls
        allowed = math.inf if calls is None else calls - self._overrun
        while time.perf_counter() - start < seconds and counted.count < allowed:
            shard = peers.shards[self._next_shard % len(peers.shards)]
            if self._pending is None:
                # Asked first: trajectories that wait for room are of an old policy when they arrive.
                if not ray.get(shard.has_room.remote(self._config.actor.batch_size), timeout=peers.timeout):
                    time.sleep(self._config.replay.retry_seconds)
                    blocked += self._config.replay.retry_seconds
                    continue
                self._pull(peers)
                began = time.perf_counter()
                trajectory = self._actor.act(partial(self._starts, shard, peers.timeout))
                self._pending = EndPoints.of(trajectory) if self._config.replay.store == "endpoints" else trajectory
                acting += time.perf_counter() - began
            rows = worth_sending(self._pending, self._floors)
            sent, filtered = self._pending.take(rows), len(self._pending) - len(rows)
            reply: InsertReply = ray.get(shard.insert.remote(sent, filtered), timeout=peers.timeout)
            if reply.accepted:
                made += len(self._pending)
                self._pending, self._floors = None, reply.floors
                self._next_shard += 1
            else:
                time.sleep(reply.retry_after)
                blocked += reply.retry_after
        self._overrun = max(counted.count - allowed, 0)
        called, counted.count = counted.count, 0
        return {
            "trajectories": float(made),
            "calls": called,
            "seconds": time.perf_counter() - start,
            "acting": acting,
            "blocked": blocked,
            "version": float(self._actor.version),
            "explorations": self._actor.take_counters(),
        }

    def _starts(self, shard: Any, timeout: float, count: int, by: StartBy) -> Trajectory | None:  # noqa: ANN401 - a Ray handle
        stored: Items | None = ray.get(shard.starts.remote(count, by), timeout=timeout)
        return None if stored is None else as_paths(stored, self._problem.prior, self._actor.generator)

    def _pull(self, peers: Peers) -> None:
        newest = ray.get(peers.store.latest.remote(self._actor.version), timeout=peers.timeout)
        if newest is None:
            return
        version, progress, (reference,) = newest
        try:
            weights = ray.get(reference, timeout=peers.timeout)
        except ray.exceptions.ObjectLostError:  # with the learner that made them; its successor publishes its own
            return
        self._actor.load_weights(weights, version, progress)

    def policy(self) -> tuple[int, int]:
        """(version, checksum) of the weights in use."""
        weights = torch.nn.utils.parameters_to_vector(self._actor.posterior.parameters())
        return self._actor.version, zlib.crc32(weights.numpy().tobytes())

    def save(self, directory: Path) -> str:
        """Writes random stream and counters into a checkpoint that is being made."""
        write_part(directory, f"actor-{self._index}", state_part(self._actor.state_dict()))
        return f"actor-{self._index}"

    def load(self, part: Part | None, life: int) -> None:
        """Goes on as process number `life` of this actor, with the random stream and counters in `part` if any."""
        self._actor = build_actor(self._config, self._problem, self._index, life)
        if part is not None:
            self._actor.load_state_dict(part.arrays, part.scalars)
