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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import ArrayLike, NDArray

from actors.exploration import StartBy
from diffusion.end_points import EndPoints
from diffusion.trajectory import Trajectory
from system.assembly import build_actor, build_learner, build_problem, build_shard, noising_generator
from system.config import RunConfig
from system.part import Part, write_part
from system.replay.eviction import worth_sending
from system.replay.messages import InsertReply, ItemIds, LogTotals, ReplayBatch, ShardMass, Weighting
from system.replay.shard_choice import ShardChoice, Turn
from system.replay.storage import Items
from system.runner import as_paths, run_progress, state_part, update_metrics

__all__ = ["LearnerWorker", "Peers", "RolloutWorker", "ShardWorker", "WeightStore"]

POLL_SECONDS = 0.005  # between two questions for a batch that is not there yet
SENT_UNDER_WAY = 4  # priorities and weights that the learner has sent and not seen confirmed


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

    def ready(self) -> bool:
        """True once the process is up."""
        return True

    def work(self, seconds: float, peers: Peers) -> dict[str, Any]:
        """Makes trajectories for `seconds`; returns counts and where the time went."""
        start = time.perf_counter()
        made, blocked, acting = 0, 0.0, 0.0
        while time.perf_counter() - start < seconds:
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
        return {
            "trajectories": float(made),
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


class LearnerWorker:
    """A learner rank in its own process: pulls batches ahead of need, pushes priorities and weights."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        self._problem = build_problem(config)
        self._learner = build_learner(config, self._problem)
        # A thread takes batches out of the object store while the learner computes.
        self._fetcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch")
        self._requests: deque[tuple[Turn, Any, Future[ReplayBatch | None]]] = deque()  # (turn, shard, batch under way)
        self._sent: deque[Any] = deque()  # references of the answers to priorities and weights that were sent
        self._published: deque[Any] = deque(maxlen=2)  # the owner must keep what readers may still fetch
        self._choice = ShardChoice(config.ray.num_shards)
        self._origin: float | None = None  # time.monotonic() at which the run began

    def ready(self) -> bool:
        """True once the process is up."""
        return True

    def work(self, seconds: float, peers: Peers, elapsed: float) -> dict[str, Any]:
        """Trains for `seconds` or to the end of the run, which has trained for `elapsed` seconds when this is asked."""
        if self._origin is None:
            self._origin = time.monotonic() - elapsed
        start = time.perf_counter()
        waited = published = 0.0
        metrics: dict[str, float] = {}
        updates = self._learner.updates
        try:
            self._compare_shards(peers)
            if not self._published:
                self._publish(peers)
            while time.perf_counter() - start < seconds and self._progress < 1:
                began = time.perf_counter()
                shard, batch = self._next_batch(peers)
                waited += time.perf_counter() - began
                if batch is None:
                    continue
                generator = noising_generator(self._config, self._learner.updates)
                trajectory = as_paths(batch.trajectory, self._problem.prior, generator)
                update = self._learner.update(trajectory, self._progress)
                if update.residual is not None:
                    self._send(shard.update_priorities.remote(batch.ids, update.residual), peers)
                metrics = update_metrics(update, trajectory, self._learner.updates)
                if self._learner.updates % self._config.ray.publish_interval == 0:
                    began = time.perf_counter()
                    self._publish(peers)
                    published += time.perf_counter() - began
        except ray.exceptions.RayError:
            self._requests.clear()  # a peer is gone, and with it the answers that it owed
            self._sent.clear()
            raise
        return {
            "metrics": metrics,
            "updates": self._learner.updates,
            "made": self._learner.updates - updates,
            "set_aside": self._learner.guard.set_aside,
            "rollbacks": self._learner.guard.rollbacks,
            "reinitialised": self._learner.reinitialised,
            "progress": self._progress,
            "seconds": time.perf_counter() - start,
            "waited": waited,
            "published": published,
        }

    @property
    def _progress(self) -> float:
        elapsed = 0.0 if self._origin is None else time.monotonic() - self._origin
        return run_progress(self._learner.updates, elapsed, self._config.updates, self._config.max_seconds)

    def _next_batch(self, peers: Peers) -> tuple[Any, ReplayBatch | None]:
        """(shard, batch); None for a batch that is not there yet, after a short wait."""
        learner = self._config.learner
        size, newest = learner.draw_size(self._progress), not learner.pretrains(self._progress)
        while len(self._requests) < self._config.ray.prefetch:
            turn = self._choice.next(self._config.replay.shares(newest))
            fetch = self._ask(turn, size, newest, peers)
            self._requests.append((turn, peers.shards[turn.shard], self._fetcher.submit(fetch)))
        turn, shard, fetched = self._requests.popleft()
        batch = fetched.result()
        if batch is None:
            self._choice.refused(turn)
            time.sleep(POLL_SECONDS)
            if not self._choice.complete:
                self._compare_shards(peers)
        else:
            self._choice.accepted()
        return shard, batch

    def _ask(self, turn: Turn, size: int, newest: bool, peers: Peers) -> Callable[[], ReplayBatch | None]:
        """Asks for the batch of a turn, or for leave to; what waits for the answer, in the fetching thread."""
        shard = peers.shards[turn.shard]
        weighting = turn.weighting if len(peers.shards) > 1 else None
        if turn.pace == turn.shard:
            return partial(ray.get, shard.sample.remote(size, weighting, newest=newest), timeout=peers.timeout)
        leave = peers.shards[turn.pace].take_turn.remote(size)

        def fetch() -> ReplayBatch | None:
            if not ray.get(leave, timeout=peers.timeout):
                return None
            batch: ReplayBatch | None = ray.get(
                shard.sample.remote(size, weighting, counted=False), timeout=peers.timeout
            )
            return batch

        return fetch

    def _compare_shards(self, peers: Peers) -> None:
        """Hears from the shards what they hold, and tells each what they hold together."""
        if len(peers.shards) > 1:
            masses = ray.get([shard.mass.remote() for shard in peers.shards], timeout=peers.timeout)
            together = self._choice.update(masses)
            ray.get([shard.refer.remote(together) for shard in peers.shards], timeout=peers.timeout)

    def _publish(self, peers: Peers) -> None:
        reference = ray.put(self._learner.weights())
        self._published.append(reference)
        self._send(peers.store.publish.remote(self._learner.updates, self._progress, [reference]), peers)

    def _send(self, answer: Any, peers: Peers) -> None:  # noqa: ANN401 - a Ray reference
        """Lets a few messages be under way at a time; raises what became of the oldest."""
        self._sent.append(answer)
        if len(self._sent) > SENT_UNDER_WAY:
            ray.get(self._sent.popleft(), timeout=peers.timeout)

    def weights(self) -> NDArray[np.float32]:
        """The averaged weights."""
        return self._learner.weights(averaged=True)

    def save(self, directory: Path) -> tuple[str, int]:
        """Writes the learner into a checkpoint that is being made; (part's name, updates)."""
        write_part(directory, "learner", state_part(self._learner.state_dict()))
        return "learner", self._learner.updates

    def load(self, part: Part) -> int:
        """Restores a checkpoint; the number of updates it stands at."""
        self._learner.load_state_dict(part.arrays, part.scalars)
        self._published.clear()  # what is out there is not of these weights
        return self._learner.updates
