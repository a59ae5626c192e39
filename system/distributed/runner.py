"""The distributed runner: the driver's side of a run on Ray. It sees counters, never a trajectory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from envs import InverseProblem
from system.checkpoint import CheckpointStore
from system.config import RunConfig
from system.distributed.cluster import connect
from system.distributed.supervisor import Supervisor, last_line, resharded
from system.errors import CheckpointError, RunnerError
from system.part import Part, write_part
from system.runner import add_counters, exploration_metrics, replay_metrics, run_progress

__all__ = ["RayRunner"]

WAIT_SECONDS = 1.0


class RayRunner:
    """See `system.runner.Runner`."""

    def __init__(self, config: RunConfig, problem: InverseProblem, run: Path) -> None:
        self.config = config
        self._origin: float | None = None  # time.monotonic() at which training began, less the time before a resume
        self._seconds_before = 0.0
        self._updates, self._progress = 0, 0.0
        self._learned_at = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._versions: dict[int, float] = {}  # actor: version of the weights it has
        self._totals = dict.fromkeys(("trajectories", "acting", "blocked", "acted"), 0.0)
        self._explorations: dict[str, float] = {}
        self._learner_time = dict.fromkeys(("seconds", "waited", "published"), 0.0)
        self._closed = False
        connect(config, namespace=f"rtb-{run.name}-{time.time_ns()}")
        try:
            self.supervisor = Supervisor(config, CheckpointStore(run / "checkpoints", config.checkpoint.keep))
            self.supervisor.wait_for_start()
        except BaseException:
            self.close()
            raise

    @property
    def updates(self) -> int:
        """See `Runner`."""
        return self._updates

    @property
    def seconds(self) -> float:
        """See `Runner`."""
        return self._seconds_before if self._origin is None else time.monotonic() - self._origin

    @property
    def finished(self) -> bool:
        """See `Runner`."""
        return self.progress >= 1.0

    @property
    def progress(self) -> float:
        """Fraction of the run that is done: as the learner last said, or by calls of the likelihood since."""
        return max(self._progress, run_progress(0, 0, 1, None, self.supervisor.calls, self.config.max_likelihood_calls))

    def advance(self) -> dict[str, float]:
        """See `Runner`: hands out slices, takes in what has ended, replaces the dead."""
        if self._origin is None:
            self._origin = time.monotonic() - self._seconds_before
            self._learned_at = time.monotonic()
        until = time.monotonic() + WAIT_SECONDS
        while not self.finished and time.monotonic() < until:
            for worker, result in self.supervisor.turn(max(until - time.monotonic(), 0.01), self.seconds):
                if worker.role == "learner":
                    self._take_learner(result)
                else:
                    self._take_actor(worker.index, result)
            self._check_starvation()
        self.supervisor.refresh_shard_stats()
        return self._metrics | self._counters()

    def _take_actor(self, index: int, result: Mapping[str, Any]) -> None:
        add_counters(self._explorations, result["explorations"])
        self._versions[index] = result["version"]
        self._totals["trajectories"] += result["trajectories"]
        self._totals["acting"] += result["acting"]
        self._totals["blocked"] += result["blocked"]
        self._totals["acted"] += result["seconds"]

    def _take_learner(self, result: Mapping[str, Any]) -> None:
        self._updates, self._progress = int(result["updates"]), float(result["progress"])
        self._metrics |= result["metrics"]
        for name in ("set_aside", "rollbacks", "reinitialised"):
            self._metrics[f"learner/{name}"] = float(result[name])
        if result["made"]:
            self._learned_at = time.monotonic()
        if self._updates:  # before the first, actors and replay are starting
            for name in self._learner_time:
                self._learner_time[name] += result[name]

    def _check_starvation(self) -> None:
        """Ends a run whose learner gets nothing to learn from, long after the last process came up."""
        limit, starting = self.config.ray.timeout_seconds, [w for w in self.supervisor.workers if w.starting]
        if starting:
            limit += self.config.ray.start_timeout_seconds
        waited = time.monotonic() - max(self._learned_at, self.supervisor.changed)
        if waited > limit and not self.finished:
            size, refused = (sum(s.get(key, 0) for s in self.supervisor.shard_stats) for key in ("size", "refused"))
            raise RunnerError(
                f"the learner has waited {waited:.0f} s for a batch from {len(self.supervisor.shards)} shards; replay "
                f"holds {size:.0f} items (replay.min_size, a shard: {self.config.replay.min_size}) and has refused "
                f"{refused:.0f} with a state or a likelihood that is not finite; {len(starting)} of "
                f"{len(self.supervisor.workers)} workers wait for a CPU"
            )

    def _counters(self) -> dict[str, float]:
        learner, totals, actors = self._learner_time, self._totals, self.supervisor.actors
        counters = {
            "learner/updates": float(self._updates),
            "learner/wait": learner["waited"] / max(learner["seconds"], 1e-9),
            "learner/publish": learner["published"] / max(learner["seconds"], 1e-9),
            "actor/trajectories": totals["trajectories"],
            "actor/seconds": totals["acting"],
            "actor/blocked": totals["blocked"] / max(totals["acted"], 1e-9),
            "actor/alive": float(sum(actor.starting is None for actor in actors)),
            "system/likelihood_calls": float(self.supervisor.calls),
            "system/progress": self.progress,
            **exploration_metrics(self._explorations),
            **{name: float(count) for name, count in self.supervisor.counts.items()},
        }
        versions = [self._versions.get(actor.index, 0.0) for actor in actors if actor.starting is None]
        if versions:
            counters["actor/version"] = min(versions)
        if all(self.supervisor.shard_stats):
            counters |= replay_metrics(self.supervisor.shard_stats)
        return counters

    def weights(self) -> NDArray[np.float32]:
        """See `Runner`."""
        weights: NDArray[np.float32] = self.supervisor.weights()
        return weights

    def save(self, directory: Path) -> tuple[str, ...]:
        """See `Runner`; every worker writes its own part, so `directory` must be on storage that all of them see.

        Raises:
            CheckpointError: a worker was lost or could not write; the run goes on, earlier checkpoints are intact.
        """
        supervisor, directory = self.supervisor, directory.resolve()
        actors = [worker for worker in supervisor.actors if worker.starting is None]
        if supervisor.learner.starting is not None:
            raise CheckpointError("no checkpoint written: the learner is being replaced; earlier ones are intact")
        learner = supervisor.learner.handle.save.remote(directory)
        others = [shard.save.remote(directory) for shard in supervisor.shards]
        others += [worker.handle.save.remote(directory) for worker in actors]
        limit = self.config.ray.start_timeout_seconds
        try:
            name, updates = ray.get(learner, timeout=limit)
            names = [name, *ray.get(others, timeout=limit)]
        except CheckpointError as error:  # raised by a worker; its text there is one line, here a traceback
            raise CheckpointError(last_line(error).removeprefix("system.errors.CheckpointError: ")) from error
        except ray.exceptions.RayError as error:
            raise CheckpointError(
                f"no checkpoint written, as a worker was lost: {last_line(error)}; earlier ones are intact"
            ) from error
        run = {
            "seconds": self.seconds,
            "updates": updates,
            "totals": dict(self._totals),
            "likelihood_calls": supervisor.calls,
            "explorations": dict(self._explorations),
            "counts": dict(supervisor.counts),
            "lives": {str(worker.index): worker.life for worker in supervisor.actors},
            "shards": len(supervisor.shards),
            "config": self.config.to_yaml(),
        }
        write_part(directory, "run", Part(scalars=run))
        return (*names, "run")

    def load(self, parts: Mapping[str, Part]) -> None:
        """See `Runner`. Items are dealt out anew where the number of shards is another; more actors start anew."""
        supervisor, run, limit = self.supervisor, parts["run"].scalars, self.config.ray.start_timeout_seconds
        self._seconds_before = float(run["seconds"])
        self._totals.update(run["totals"])
        self._explorations.update(run["explorations"])
        supervisor.counts.update(run["counts"])
        supervisor.calls = int(run.get("likelihood_calls", 0))  # earlier checkpoints did not count them
        self._updates = supervisor.get(
            supervisor.learner.handle.load.remote(parts["learner"]), "the learner to load", limit
        )
        saved = [parts[f"replay-{index}"] for index in range(run["shards"])]
        shards = zip(supervisor.shards, resharded(saved, len(supervisor.shards)), strict=True)
        loading = [shard.load.remote(part, False) for shard, part in shards]
        for worker in supervisor.actors:
            part = parts.get(f"actor-{worker.index}")
            worker.life = run["lives"].get(str(worker.index), 0) + (part is None)  # no part: it was being replaced
            loading.append(worker.handle.load.remote(part, worker.life))
        supervisor.get(loading, "shards and actors to load", limit)

    def close(self) -> None:
        """See `Runner`."""
        if not self._closed:
            self._closed = True
            ray.shutdown()
