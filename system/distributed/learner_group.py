"""The learner: one rank, or a group of ranks that take every step together (`learner.ranks`).

    LearnerWorker, rank 0 --fetch, update--> LearnerRank 1 .. N - 1

Rank 0 owns the others: they live in the bundles of its placement group and end with it. It says when a step is taken
and how far the run is, and speaks for the group to the driver; every rank pulls its own part of the batch from the
shards and sends its own priorities. They meet in torch.distributed, over gloo. Where a rank is lost the step fails in
all, and the driver starts the group again from the last checkpoint, with replay and actors left alone.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.ranks import ONE_RANK, DistributedRanks, RankLost, Ranks, together
from learner.sharding import ShardedRanks
from system.assembly import build_learner, build_problem, noising_generator
from system.config import RunConfig
from system.distributed.workers import Peers
from system.part import Part, write_part
from system.replay.messages import ReplayBatch
from system.replay.shard_choice import ShardChoice, Turn
from system.runner import as_paths, run_progress, state_part, update_metrics

__all__ = ["LearnerRank", "LearnerWorker", "place_of_learner"]

POLL_SECONDS = 0.005  # between two questions for a batch that is not there yet
SENT_UNDER_WAY = 4  # priorities and weights that a rank has sent and not seen confirmed


@dataclass(frozen=True, slots=True)
class _Request:
    """A batch under way."""

    turn: Turn
    shard: Any
    drawn: tuple[int, bool]  # (size, whether the newest window has its share)
    batch: Future[ReplayBatch | None]


class LearnerRank:
    """A learner in its own process: pulls its part of the batches ahead of need, pushes their priorities."""

    def __init__(self, config: RunConfig, rank: int = 0, meeting: tuple[str, int] | None = None) -> None:
        """`meeting`: host and port where the ranks find each other; None for a learner by itself."""
        torch.set_num_threads(1)
        self._config = config
        self._problem = build_problem(config)
        self._ranks = ONE_RANK if meeting is None else _join(config, rank, meeting, self._problem.device)
        self.learner = build_learner(config, self._problem, self._ranks)
        self.metrics: dict[str, float] = {}
        """Of the last update."""
        # A thread takes batches out of the object store while the learner computes.
        self._fetcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch")
        self._requests: deque[_Request] = deque()
        self._held: tuple[_Request, ReplayBatch] | None = None  # what the next update learns from
        self._sent: deque[Any] = deque()  # references of the answers to priorities and weights that were sent
        self._choice = ShardChoice(config.ray.num_shards)

    def fetch(self, progress: float, peers: Peers) -> bool:
        """Whether this rank's part of the next batch is here; else after a short wait."""
        learner = self._config.learner
        wanted = (learner.draw_size(progress) // self._ranks.size, not learner.pretrains(progress))
        if self._held is not None and self._held[0].drawn == wanted:
            return True
        try:
            if not self._choice.complete:
                self.compare_shards(peers)
            self._held = self._next(wanted, peers)
        except ray.exceptions.RayError:
            self.forget()
            raise
        return self._held is not None

    def update(self, progress: float, peers: Peers) -> int:
        """Takes a step, with the other ranks, on the batch that `fetch` brought; calls of the likelihood it took."""
        assert self._held is not None
        (request, batch), self._held = self._held, None
        number = self.learner.updates * self._ranks.size + self._ranks.rank
        generator = noising_generator(self._config, self._problem, number)
        trajectory = as_paths(batch.trajectory, self._problem.prior, generator)
        with together():
            update = self.learner.update(trajectory, progress)
        self.metrics = update_metrics(update, trajectory, self.learner.updates)
        if update.residual is not None:
            self.send(request.shard.update_priorities.remote(batch.ids, update.residual), peers)
        called, self._problem.calls.count = self._problem.calls.count, 0
        return called

    def _next(self, wanted: tuple[int, bool], peers: Peers) -> tuple[_Request, ReplayBatch] | None:
        """The next batch; None if it is not there yet, after a short wait."""
        while self._requests and self._requests[0].drawn != wanted:  # asked for before pretraining ended
            self._requests.popleft()
        while len(self._requests) < self._config.ray.prefetch:
            turn = self._choice.next(self._config.replay.shares(wanted[1]))
            fetch = self._ask(turn, *wanted, peers)
            self._requests.append(_Request(turn, peers.shards[turn.shard], wanted, self._fetcher.submit(fetch)))
        request = self._requests.popleft()
        batch = request.batch.result()
        if batch is None:
            self._choice.refused(request.turn)
            time.sleep(POLL_SECONDS)
            return None
        self._choice.accepted()
        return request, batch

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

    def compare_shards(self, peers: Peers) -> None:
        """Hears from the shards what they hold, and tells each what they hold together."""
        if len(peers.shards) > 1:
            masses = ray.get([shard.mass.remote() for shard in peers.shards], timeout=peers.timeout)
            together = self._choice.update(masses)
            ray.get([shard.refer.remote(together) for shard in peers.shards], timeout=peers.timeout)

    def send(self, answer: Any, peers: Peers) -> None:  # noqa: ANN401 - a Ray reference
        """Lets a few messages be under way at a time; raises what became of the oldest."""
        self._sent.append(answer)
        if len(self._sent) > SENT_UNDER_WAY:
            ray.get(self._sent.popleft(), timeout=peers.timeout)

    def forget(self) -> None:
        """A peer is gone, and with it the answers that it owed."""
        self._requests.clear()
        self._sent.clear()

    def weights(self, averaged: bool) -> NDArray[np.float32] | None:
        """The weights of all ranks together, in rank 0."""
        with together():
            weights = self.learner.weights(averaged=averaged)
        return weights if self._ranks.rank == 0 else None

    def state(self) -> Part | None:
        """What a checkpoint has of the learner, in rank 0."""
        with together():
            state = self.learner.state_dict()
        return state_part(state) if self._ranks.rank == 0 else None

    def load(self, part: Part) -> int:
        """Restores a checkpoint, of any number of ranks; the number of updates it stands at."""
        self.learner.load_state_dict(part.arrays, part.scalars)
        return self.learner.updates


class LearnerWorker:
    """Rank 0: leads the other ranks, publishes weights, and is what the driver sees of the learner."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._others: list[Any] = []
        meeting = store = None
        if config.ray.num_learners > 1:
            # Port 0: any that is free. The store lives as long as this process does.
            address = ray.util.get_node_ip_address()
            store = dist.TCPStore(address, 0, config.ray.num_learners, True, wait_for_workers=False)  # type: ignore[attr-defined]
            meeting = (address, store.port)
            self._others = [self._make_rank(rank, meeting) for rank in range(1, config.ray.num_learners)]
        self._store = store
        self._rank = LearnerRank(config, 0, meeting)
        self._answers: list[Any] = []  # references of what the other ranks make of the last update
        self._published: deque[Any] = deque(maxlen=2)  # the owner must keep what readers may still fetch
        self._origin: float | None = None  # time.monotonic() at which the run began
        self._calls = 0  # of the likelihood, in the whole run, when the driver asked for the present slice
        self._made_calls = 0  # by the ranks, since a slice last ended

    def _make_rank(self, rank: int, meeting: tuple[str, int]) -> Any:  # noqa: ANN401 - a Ray handle
        options, group = self._config.ray, get_current_placement_group()
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        make = ray.remote(LearnerRank).options(
            num_cpus=options.cpus_per_learner, num_gpus=options.gpus_per_learner, scheduling_strategy=place
        )
        return make.remote(self._config, rank, meeting)

    def ready(self) -> bool:
        """True once the process is up, and those of the other ranks."""
        return True

    def work(self, seconds: float, peers: Peers, elapsed: float, calls: int = 0) -> dict[str, Any]:
        """Trains for `seconds` or to the end of the run.

        It has trained for `elapsed` seconds and made `calls` of the likelihood when this is asked.
        """
        self._calls = calls
        if self._origin is None:
            self._origin = time.monotonic() - elapsed
        start = time.perf_counter()
        waited = published = 0.0
        learner = self._rank.learner
        updates = learner.updates
        try:
            self._rank.compare_shards(peers)
            if not self._published:
                self._publish(peers)
            while time.perf_counter() - start < seconds and self._progress < 1:
                progress, began = self._progress, time.perf_counter()
                here = self._fetch(progress, peers)
                waited += time.perf_counter() - began
                if not here:
                    continue
                self._update(progress, peers)
                if learner.updates % self._config.ray.publish_interval == 0:
                    began = time.perf_counter()
                    self._publish(peers)
                    published += time.perf_counter() - began
        except ray.exceptions.RayError:
            self._rank.forget()
            raise
        called, self._made_calls = self._made_calls, 0
        return {
            "calls": called,
            "metrics": self._rank.metrics if learner.updates > updates else {},
            "updates": learner.updates,
            "made": learner.updates - updates,
            "set_aside": learner.guard.set_aside,
            "rollbacks": learner.guard.rollbacks,
            "reinitialised": learner.reinitialised,
            "progress": self._progress,
            "seconds": time.perf_counter() - start,
            "waited": waited,
            "published": published,
        }

    @property
    def _progress(self) -> float:
        elapsed = 0.0 if self._origin is None else time.monotonic() - self._origin
        config, updates = self._config, self._rank.learner.updates
        return run_progress(
            updates, elapsed, config.updates, config.max_seconds, self._calls, config.max_likelihood_calls
        )

    def _fetch(self, progress: float, peers: Peers) -> bool:
        """Whether every rank has its part of the next batch; the others ask while this one does."""
        asked = [rank.fetch.remote(progress, peers) for rank in self._others]
        here = self._rank.fetch(progress, peers)
        answers, self._answers = self._answers, []
        self._made_calls += sum(self._hear(answers, peers.timeout))
        return all(self._hear(asked, peers.timeout)) and here

    def _update(self, progress: float, peers: Peers) -> None:
        self._answers = [rank.update.remote(progress, peers) for rank in self._others]
        try:
            self._made_calls += self._rank.update(progress, peers)
        except RankLost:
            self._hear(self._answers, peers.timeout)  # where it failed in a way of its own, that is the reason
            raise

    def _together(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401
        """What `method` of rank 0 gives, asked of all ranks where each holds but a part of the weights."""
        others = self._others if self._config.ray.shard_weights else []
        asked = [getattr(rank, method).remote(*arguments) for rank in others]
        limit = self._config.ray.timeout_seconds / 2
        try:
            answer = getattr(self._rank, method)(*arguments)
        except RankLost:
            self._hear(asked, limit)
            raise
        self._hear(asked, limit)
        return answer

    def _hear(self, answers: Sequence[Any], timeout: float) -> list[Any]:
        """The answers of other ranks; what failed in one of them fails here."""
        heard, lost = [], None
        for answer in answers:
            try:
                heard.append(ray.get(answer, timeout=timeout))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if not isinstance(cause, RankLost):
                    raise cause if isinstance(cause, Exception) else error from None
                lost = cause
            except ray.exceptions.RayError as error:
                lost = RankLost(f"a rank is gone: {' '.join(str(error).split())[:200]}")
        if lost is not None:
            raise lost
        return heard

    def _publish(self, peers: Peers) -> None:
        reference = ray.put(self._together("weights", self._config.actor.weights == "averaged"))
        self._published.append(reference)
        version = self._rank.learner.updates
        self._rank.send(peers.store.publish.remote(version, self._progress, [reference]), peers)

    def weights(self) -> NDArray[np.float32]:
        """The averaged weights."""
        weights: NDArray[np.float32] = self._together("weights", True)
        return weights

    def save(self, directory: Path) -> tuple[str, int]:
        """Writes the learner into a checkpoint that is being made; (part's name, updates)."""
        write_part(directory, "learner", self._together("state"))
        return "learner", self._rank.learner.updates

    def load(self, part: Part) -> int:
        """Restores a checkpoint in all ranks; the number of updates it stands at."""
        loading = [rank.load.remote(part) for rank in self._others]
        updates = self._rank.load(part)
        ray.get(loading)
        self._published.clear()  # what is out there is not of these weights
        return updates


def place_of_learner(config: RunConfig) -> Any:  # noqa: ANN401 - a scheduling strategy of Ray
    """Where rank 0 goes: of a group, the first bundle of a placement group with one for each rank."""
    options = config.ray
    if options.num_learners == 1:
        return "DEFAULT"
    amounts = {"CPU": options.cpus_per_learner, "GPU": options.gpus_per_learner}
    bundle = {kind: amount for kind, amount in amounts.items() if amount > 0} or {"CPU": 0.001}  # not empty
    group = ray.util.placement_group([bundle] * options.num_learners, strategy="PACK")
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)


def _join(config: RunConfig, rank: int, meeting: tuple[str, int], device: torch.device) -> Ranks:
    """Makes torch.distributed's default process group once all ranks are there."""
    size, own = config.ray.num_learners, ray.util.get_node_ip_address()
    # By itself gloo takes the address of the host's name, which on many machines is that of the loop.
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == own for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    start = timedelta(seconds=config.ray.start_timeout_seconds)
    store = dist.TCPStore(*meeting, size, False, timeout=start)  # type: ignore[attr-defined]
    store.set(f"rank {rank}", "here")
    store.wait([f"rank {other}" for other in range(size)], start)
    # A step may not outlast the driver's patience with rank 0, which waits for the others in it.
    step = timedelta(seconds=config.ray.timeout_seconds / 2)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=step)
    return ShardedRanks() if config.ray.shard_weights else DistributedRanks()
