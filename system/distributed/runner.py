"""The distributed runner: the driver that starts the workers, gives them work, and replaces the ones that die.

Per worker two slices of work are under way, so the driver may take its time. What ends a worker, and what follows:
an actor is replaced by one with a new random stream; a shard by one with the last checkpoint's items; the learner by
one at the last checkpoint's weights, with replay and actors left alone; a worker that is silent for too long is killed
and replaced. Every replacement is counted in the metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from envs import InverseProblem
from system.config import RunConfig
from system.distributed.cluster import connect
from system.distributed.workers import LearnerWorker, Peers, RolloutWorker, ShardWorker, WeightStore
from system.errors import RunnerError
from system.part import Part, write_part
from system.runner import replay_metrics

__all__ = ["RayRunner"]

SLICES_UNDER_WAY = 2
WAIT_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Worker:
    """A Ray actor that is given slices of work."""

    role: str
    index: int
    handle: Any
    restarts: int = 0
    slices: dict[Any, float] = field(default_factory=dict)  # reference of the result: when it was asked for


class RayRunner:
    """See `system.runner.Runner`."""

    def __init__(self, config: RunConfig, problem: InverseProblem, run: Path) -> None:
        self.config = config
        self._parts: Mapping[str, Part] = {}  # of the last checkpoint, to replace shards and learner from
        self._origin: float | None = None  # time.time() at which training began, less the time before a resume
        self._seconds_before = 0.0
        self._updates, self._progress = 0, 0.0
        self._learned_at = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._totals = dict.fromkeys(("trajectories", "acting", "blocked", "acted"), 0.0)
        self._learner_time = dict.fromkeys(("seconds", "waited", "published"), 0.0)
        self._counts = dict.fromkeys(("actor/restarts", "learner/restarts", "replay/restarts", "replay/lost"), 0)
        self._closed = False
        connect(config, namespace=f"rtb-{run.name}-{time.time_ns()}")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        ray_config = self.config.ray
        self._store = ray.remote(WeightStore).options(num_cpus=0).remote()
        self._shards = [self._make_shard(index) for index in range(ray_config.num_shards)]
        self._learner = Worker("learner", 0, self._make_learner())
        self._actors = [Worker("actor", index, self._make_actor(index, 0)) for index in range(ray_config.num_actors)]
        handles = {f"shard {index}": shard for index, shard in enumerate(self._shards)}
        handles |= {"learner": self._learner.handle} | {f"actor {w.index}": w.handle for w in self._actors}
        waiting = {handle.ready.remote(): name for name, handle in handles.items()}
        ready, missing = ray.wait(list(waiting), num_returns=len(waiting), timeout=ray_config.start_timeout_seconds)
        if missing:
            names = ", ".join(waiting[reference] for reference in missing)
            raise RunnerError(
                f"after {ray_config.start_timeout_seconds:g} s the driver still waits for {names} to start; "
                f"{ray.available_resources().get('CPU', 0.0):g} CPUs are free (`ray status` shows what is pending)"
            )
        self._get(ready, "the start of all workers", ray_config.start_timeout_seconds)

    def _make_shard(self, index: int) -> Any:  # noqa: ANN401 - a Ray handle
        return ray.remote(ShardWorker).options(num_cpus=0).remote(self.config, index)

    def _make_actor(self, index: int, restarts: int) -> Any:  # noqa: ANN401
        options = ray.remote(RolloutWorker).options(num_cpus=self.config.ray.cpus_per_actor)
        return options.remote(self.config, index, restarts)

    def _make_learner(self) -> Any:  # noqa: ANN401
        ray_config = self.config.ray
        options = ray.remote(LearnerWorker).options(
            num_cpus=ray_config.cpus_per_learner, num_gpus=ray_config.gpus_per_learner
        )
        return options.remote(self.config)

    @property
    def updates(self) -> int:
        """See `Runner`."""
        return self._updates

    @property
    def seconds(self) -> float:
        """See `Runner`."""
        return self._seconds_before if self._origin is None else time.time() - self._origin

    @property
    def finished(self) -> bool:
        """See `Runner`."""
        return self._progress >= 1.0

    def advance(self) -> dict[str, float]:
        """See `Runner`: hands out slices, takes in what has ended, replaces the dead."""
        if self._origin is None:
            self._origin = time.time() - self._seconds_before
            self._learned_at = time.monotonic()
        until = time.monotonic() + WAIT_SECONDS
        while not self.finished and time.monotonic() < until:
            for worker in self._workers():
                while len(worker.slices) < SLICES_UNDER_WAY:
                    self._ask(worker)
            references = {reference: worker for worker in self._workers() for reference in worker.slices}
            ended, _ = ray.wait(list(references), timeout=max(until - time.monotonic(), 0.01))
            for reference in ended:
                self._take(references[reference], reference)
            self._check_silence()
        self._metrics |= self._shard_metrics()
        return self._metrics | self._counters()

    def _workers(self) -> list[Worker]:
        return [self._learner, *self._actors]

    def _ask(self, worker: Worker) -> None:
        seconds, timeout = self.config.ray.slice_seconds, self.config.ray.timeout_seconds
        peers = Peers(shards=tuple(self._shards), store=self._store, timeout=timeout)
        if worker.role == "learner":
            reference = worker.handle.work.remote(seconds, peers, self._origin)
        else:
            reference = worker.handle.work.remote(seconds, peers)
        worker.slices[reference] = time.monotonic()

    def _take(self, worker: Worker, reference: Any) -> None:  # noqa: ANN401
        """The result of a slice, or the end of its worker, or of a peer of it."""
        worker.slices.pop(reference, None)
        try:
            result = ray.get(reference, timeout=self.config.ray.timeout_seconds)
        except ray.exceptions.RayTaskError as error:
            # Raised inside the worker, which lives: a peer died or was silent, or there is a bug.
            if isinstance(error.cause, ray.exceptions.RayError):
                self._check_peers()
                return
            raise RunnerError(f"{worker.role} {worker.index} failed: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            self._replace(worker, _last_line(error))
            return
        if worker.slices:  # the next slice began when this one ended
            first = next(iter(worker.slices))
            worker.slices[first] = time.monotonic()
        if worker.role == "learner":
            self._take_learner(result)
        else:
            self._totals["trajectories"] += result["trajectories"]
            self._totals["acting"] += result["acting"]
            self._totals["blocked"] += result["blocked"]
            self._totals["acted"] += result["seconds"]

    def _take_learner(self, result: Mapping[str, Any]) -> None:
        self._updates, self._progress = int(result["updates"]), float(result["progress"])
        self._metrics |= result["metrics"]
        self._metrics["learner/skipped"] = float(result["skipped"])
        if result["made"]:
            self._learned_at = time.monotonic()
            for name in self._learner_time:
                self._learner_time[name] += result[name]
            return
        silent = time.monotonic() - self._learned_at
        if silent > self.config.ray.timeout_seconds and not self.finished:
            raise RunnerError(
                f"the learner has waited {silent:.0f} s for a batch from {len(self._shards)} shards; replay holds "
                f"{self._metrics.get('replay/size', 0):.0f} items of min_size {self.config.replay.min_size}, "
                f"{len(self._actors)} actors are alive, {self._counts['actor/restarts']} restarts"
            )

    def _check_silence(self) -> None:
        """Kills and replaces workers whose slice is overdue."""
        limit = self.config.ray.timeout_seconds + self.config.ray.slice_seconds
        for worker in self._workers():
            if worker.slices and time.monotonic() - min(worker.slices.values()) > 2 * limit:
                ray.kill(worker.handle)
                self._replace(worker, f"silent for {2 * limit:.0f} s")

    def _check_peers(self) -> None:
        """Replaces shards and the weight store if they are gone."""
        for index, shard in enumerate(self._shards):
            if not self._alive(shard.ready.remote()):
                ray.kill(shard)
                self._replace_shard(index)
        if not self._alive(self._store.latest.remote(-1)):
            ray.kill(self._store)
            self._store = ray.remote(WeightStore).options(num_cpus=0).remote()
            _log.warning("the weight store was lost and replaced")

    def _alive(self, reference: Any) -> bool:  # noqa: ANN401
        try:
            ray.get(reference, timeout=self.config.ray.timeout_seconds)
        except ray.exceptions.RayError:
            return False
        return True

    def _replace(self, worker: Worker, reason: str) -> None:
        worker.restarts += 1
        worker.slices.clear()
        self._counts[f"{worker.role}/restarts"] += 1
        _log.warning("%s %d was lost (%s); restart %d", worker.role, worker.index, reason, worker.restarts)
        if worker.role == "learner":
            worker.handle = self._make_learner()
            if "learner" in self._parts:
                worker.handle.load.remote(self._parts["learner"])
            return
        if worker.restarts > self.config.ray.max_restarts:
            self._actors.remove(worker)
            if not self._actors:
                raise RunnerError(f"all actors are lost; the last one ({reason}) after {worker.restarts - 1} restarts")
            return
        worker.handle = self._make_actor(worker.index, worker.restarts)

    def _replace_shard(self, index: int) -> None:
        self._counts["replay/restarts"] += 1
        held = self._metrics.get("replay/size", 0.0) / len(self._shards)
        self._shards[index] = self._make_shard(index)
        restored = 0
        if f"replay-{index}" in self._parts:
            reference = self._shards[index].load.remote(self._parts[f"replay-{index}"], True)
            restored = self._get(reference, f"shard {index} to load its snapshot", self.config.ray.timeout_seconds)
        self._counts["replay/lost"] += max(int(held) - restored, 0)
        _log.warning("shard %d was lost; %d items restored from the last checkpoint", index, restored)

    def _shard_metrics(self) -> dict[str, float]:
        references = [shard.stats.remote() for shard in self._shards]
        try:
            return replay_metrics(ray.get(references, timeout=self.config.ray.timeout_seconds))
        except ray.exceptions.RayError:
            self._check_peers()
            return {}

    def _counters(self) -> dict[str, float]:
        learner, totals = self._learner_time, self._totals
        return {
            "learner/updates": float(self._updates),
            "learner/wait": learner["waited"] / max(learner["seconds"], 1e-9),
            "learner/publish": learner["published"] / max(learner["seconds"], 1e-9),
            "actor/trajectories": totals["trajectories"],
            "actor/seconds": totals["acting"],
            "actor/blocked": totals["blocked"] / max(totals["acted"], 1e-9),
            "system/progress": self._progress,
            **{name: float(count) for name, count in self._counts.items()},
        }

    def weights(self) -> NDArray[np.float32]:
        """See `Runner`."""
        weights: NDArray[np.float32] = self._get(
            self._learner.handle.weights.remote(), "the learner's weights", self.config.ray.timeout_seconds
        )
        return weights

    def save(self, directory: Path) -> tuple[str, ...]:
        """See `Runner`; every worker writes its own part, so `directory` must be on storage that all of them see."""
        learner = self._learner.handle.save.remote(directory)
        others = [shard.save.remote(directory) for shard in self._shards]
        others += [worker.handle.save.remote(directory) for worker in self._actors]
        timeout = self.config.ray.timeout_seconds
        name, updates = self._get(learner, "the learner to save", timeout)
        names = [name, *self._get(others, "shards and actors to save", timeout)]
        run = {
            "seconds": self.seconds,
            "updates": updates,
            "totals": dict(self._totals),
            "counts": dict(self._counts),
            "config": self.config.to_yaml(),
        }
        write_part(directory, "run", Part(scalars=run))
        return (*names, "run")

    def load(self, parts: Mapping[str, Part]) -> None:
        """See `Runner`."""
        self._parts = parts
        run, timeout = parts["run"].scalars, self.config.ray.start_timeout_seconds
        self._seconds_before = float(run["seconds"])
        self._totals.update(run["totals"])
        self._counts.update(run["counts"])
        self._updates = self._get(self._learner.handle.load.remote(parts["learner"]), "the learner to load", timeout)
        loading = [
            shard.load.remote(parts[f"replay-{index}"], False)
            for index, shard in enumerate(self._shards)
            if f"replay-{index}" in parts
        ]
        loading += [
            w.handle.load.remote(parts[f"actor-{w.index}"]) for w in self._actors if f"actor-{w.index}" in parts
        ]
        self._get(loading, "shards and actors to load", timeout)

    def _get(self, references: Any, what: str, timeout: float) -> Any:  # noqa: ANN401
        try:
            return ray.get(references, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise RunnerError(f"the driver waited {timeout:g} s for {what}, in vain") from None
        except ray.exceptions.RayError as error:
            raise RunnerError(f"{what}: {_last_line(error)}") from error

    def close(self) -> None:
        """See `Runner`."""
        if not self._closed:
            self._closed = True
            ray.shutdown()


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
