"""The supervisor: starts the workers of a run, hands out slices of work, and replaces those that die or fall silent.

Per worker two slices are under way, so the driver may take its time. What ends a worker, and what follows: an actor is
replaced by one with a new random stream; a shard by one with the last checkpoint's items; the learner by one at the
last checkpoint's weights, with replay and actors left alone; the weight store by an empty one, which the learner fills.
Where the lost node took its CPUs along, a replaced actor waits for others and the run goes on without it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from envs.time_limit import LikelihoodTimeout
from learner import Diverged
from learner.ranks import RankLost
from system.checkpoint import CheckpointStore
from system.config import RunConfig
from system.distributed.learner_group import LearnerWorker, place_of_learner
from system.distributed.workers import Peers, RolloutWorker, ShardWorker, WeightStore
from system.errors import CheckpointError, DivergedError, RunnerError
from system.part import Part
from system.replay.reshard import reshard
from system.runner import state_part

__all__ = ["Supervisor", "Worker", "last_line", "resharded"]

SLICES_UNDER_WAY = 2
PAUSE_SECONDS = 0.2  # before work goes on after a peer did not answer and yet lives

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Worker:
    """A rollout worker or the learner: a Ray actor that is given slices of work."""

    role: str
    index: int
    handle: Any = None
    starting: Any = None  # reference that resolves once the process is up and restored; None from then on
    life: int = 0  # number of this process among all that the worker ever had, earlier sessions of the run included
    restarts: int = 0
    slices: list[Any] = field(default_factory=list)  # references of results, oldest first
    allowed: list[int] = field(default_factory=list)  # calls of the likelihood in each, where there is a budget of them
    heard: float = 0.0  # time.monotonic() of the last report, or of the request if none was under way

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.role} {self.index}"

    @property
    def under_way(self) -> list[Any]:
        """What it owes."""
        return self.slices if self.starting is None else [self.starting]


class Supervisor:
    """Workers of one run. `checkpoints` is where the replaced ones get their state from."""

    def __init__(self, config: RunConfig, checkpoints: CheckpointStore) -> None:
        self.config, self._checkpoints = config, checkpoints
        self.changed = time.monotonic()  # when a process last came up
        self.calls = 0  # of the likelihood that workers have reported
        self.counts = dict.fromkeys(("actor/restarts", "learner/restarts", "replay/restarts", "replay/lost"), 0)
        self._place_of_learner = place_of_learner(config)
        self.store = self._make_store()
        self.shards = [self._make_shard(index) for index in range(config.ray.num_shards)]
        self.shard_stats: list[dict[str, float]] = [{} for _ in self.shards]
        self.learner = Worker("learner", 0)
        self.actors = [Worker("actor", index) for index in range(config.ray.num_actors)]
        for worker in self.workers:
            self._start(worker)

    @property
    def workers(self) -> list[Worker]:
        """All that are given slices."""
        return [self.learner, *self.actors]

    def wait_for_start(self) -> None:
        """Returns when all processes are up."""
        limit = self.config.ray.start_timeout_seconds
        waiting = {shard.ready.remote(): f"shard {index}" for index, shard in enumerate(self.shards)}
        waiting |= {worker.starting: worker.name for worker in self.workers}
        _, missing = ray.wait(list(waiting), num_returns=len(waiting), timeout=limit)
        if missing:
            names = ", ".join(waiting[reference] for reference in missing)
            raise RunnerError(
                f"after {limit:g} s the driver still waits for {names} to start; "
                f"{ray.available_resources().get('CPU', 0.0):g} CPUs are free (`ray status` shows what is pending)"
            )
        for reference, name in waiting.items():
            self.get(reference, f"the start of {name}", limit)
        for worker in self.workers:
            worker.starting = None

    def _make_store(self) -> Any:  # noqa: ANN401 - a Ray handle, here and below
        return ray.remote(WeightStore).options(num_cpus=0).remote()

    def _make_shard(self, index: int) -> Any:  # noqa: ANN401
        return ray.remote(ShardWorker).options(num_cpus=0, scheduling_strategy="SPREAD").remote(self.config, index)

    def _start(self, worker: Worker) -> None:
        options, config = self.config.ray, self.config
        if worker.role == "actor":
            amounts = {"num_cpus": options.cpus_per_actor, "num_gpus": options.gpus_per_actor}
            make = ray.remote(RolloutWorker).options(**amounts, scheduling_strategy="SPREAD")
            worker.handle = make.remote(config, worker.index, worker.life)
            worker.starting = worker.handle.ready.remote()
        else:
            amounts = {"num_cpus": options.cpus_per_learner, "num_gpus": options.gpus_per_learner}
            make = ray.remote(LearnerWorker).options(**amounts, scheduling_strategy=self._place_of_learner)
            worker.handle = make.remote(config)
            part = self._saved("learner") if worker.restarts else None
            worker.starting = worker.handle.ready.remote() if part is None else worker.handle.load.remote(part)
        worker.slices.clear()
        worker.allowed.clear()
        worker.heard = time.monotonic()

    def _saved(self, name: str) -> Part | None:
        """A part of the newest sound checkpoint; None if there is none yet."""
        try:
            return self._checkpoints.load(only=(name,)).parts[name]
        except CheckpointError as error:
            _log.warning("%s starts from nothing: %s", name, error)
            return None

    def _saved_shard(self, index: int) -> Part | None:
        """As `_saved`; where the newest checkpoint is of another number of shards, what this one gets of it."""
        run = self._saved("run")
        if run is None:
            return None
        names = [f"replay-{number}" for number in range(run.scalars["shards"])]
        if len(names) == len(self.shards):
            return self._saved(f"replay-{index}")
        saved = self._checkpoints.load(only=names).parts
        return resharded([saved[name] for name in names], len(self.shards))[index]

    def turn(self, timeout: float, elapsed: float) -> list[tuple[Worker, dict[str, Any]]]:
        """Hands out slices, waits up to `timeout` for one to end, replaces the dead; (worker, result) of what ended."""
        for worker in self.workers:
            while worker.starting is None and len(worker.slices) < SLICES_UNDER_WAY:
                if not self._ask(worker, elapsed):
                    break
        owners = {reference: worker for worker in self.workers for reference in worker.under_way}
        ray.wait(list(owners), timeout=timeout)
        ended, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        results = []
        for reference in ended:
            worker = owners[reference]
            if reference in worker.under_way:  # not replaced a moment ago
                result = self._take(worker, reference)
                if result is not None:
                    results.append((worker, result))
        self._check_silence()
        return results

    def _ask(self, worker: Worker, elapsed: float) -> bool:
        """Gives the worker a slice; False where no call of the likelihood is left for it."""
        allowed = None if worker.role == "learner" else self._allowance()
        if allowed == 0:
            return False
        # Half the time for peers: who waits for a hung one reports that before being taken for hung itself.
        seconds, timeout = self.config.ray.slice_seconds, self.config.ray.timeout_seconds / 2
        peers = Peers(shards=tuple(self.shards), store=self.store, timeout=timeout)
        arguments = (seconds, peers, elapsed, self.calls) if worker.role == "learner" else (seconds, peers, allowed)
        if not worker.slices:
            worker.heard = time.monotonic()
        worker.slices.append(worker.handle.work.remote(*arguments))
        worker.allowed.append(allowed or 0)
        return True

    def _allowance(self) -> int | None:
        """Calls of the likelihood that an actor may make in its next slice; None: any number.

        What is promised to slices under way is kept back, so that all together overrun the budget by a turn of each
        actor at most; and an actor gets half of its share of the rest, so that none is left with all of it.
        """
        budget = self.config.max_likelihood_calls
        if budget is None:
            return None
        left = budget - self.calls - sum(sum(worker.allowed) for worker in self.actors)
        share = max(left // (2 * len(self.actors)), self.config.actor.batch_size)
        return max(min(left, share), 0)

    def _take(self, worker: Worker, reference: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """What a slice brought; None where a start or a death ended instead."""
        worker.heard = time.monotonic()
        try:
            result = ray.get(reference, timeout=self.config.ray.timeout_seconds)
        except ray.exceptions.RayTaskError as error:
            # Of a likelihood that hangs the state is unknown, and another x may fare better.
            if isinstance(error.cause, LikelihoodTimeout | RankLost):
                self._replace(worker, error.cause)
                return None
            if isinstance(error.cause, Diverged):
                raise DivergedError(f"training diverged: {error.cause}") from error
            if not _is_loss_of_peer(error):
                raise _failure(worker.name, error) from error
            self._ended(worker, reference)
            if not self.check_peers():
                time.sleep(PAUSE_SECONDS)
            return None
        except ray.exceptions.RayError as error:
            self._replace(worker, error)
            return None
        if worker.starting is not None:
            worker.starting, self.changed = None, time.monotonic()
            return None
        self._ended(worker, reference)
        self.calls += result["calls"]
        return result

    @staticmethod
    def _ended(worker: Worker, reference: Any) -> None:  # noqa: ANN401
        place = worker.slices.index(reference)
        del worker.slices[place], worker.allowed[place]

    def _check_silence(self) -> None:
        """Kills and replaces workers whose slice is overdue; an actor may wait for a free CPU as long as it takes."""
        ray_config = self.config.ray
        limit = ray_config.timeout_seconds + ray_config.slice_seconds
        for worker in self.workers:
            silent = time.monotonic() - worker.heard
            if worker.starting is not None:
                if worker.role == "learner" and silent > ray_config.start_timeout_seconds:
                    raise RunnerError(
                        f"the learner was lost and has waited {silent:.0f} s for {ray_config.cpus_per_learner:g} CPUs "
                        f"and {ray_config.gpus_per_learner:g} GPUs to start again; add nodes and resume the run"
                    )
            elif silent > limit and worker.slices and not ray.wait(worker.slices, timeout=0.5)[0]:
                self._replace(worker, TimeoutError(f"silent for {silent:.0f} s; see ray.timeout_seconds"))

    def check_peers(self) -> bool:
        """Replaces shards and the weight store where they are gone; whether any was."""
        lost = [index for index, shard in enumerate(self.shards) if not self._alive(shard)]
        for index in lost:
            self._replace_shard(index)
        if self._alive(self.store):
            return bool(lost)
        ray.kill(self.store)
        self.store, _ = self._start_again("the weight store", self._make_store, lambda store: store.ready.remote())
        _log.warning("the weight store was lost and replaced")
        return True

    def _alive(self, handle: Any) -> bool:  # noqa: ANN401
        until = time.monotonic() + self.config.ray.timeout_seconds / 2
        while True:
            try:
                return bool(ray.get(handle.ready.remote(), timeout=max(until - time.monotonic(), 0.1)))
            except ray.exceptions.ActorUnavailableError:  # the network stumbles, or a node is just being lost
                if time.monotonic() > until:
                    return False
                time.sleep(PAUSE_SECONDS)
            except ray.exceptions.RayError:
                return False

    def _replace(self, worker: Worker, error: BaseException) -> None:
        reason = last_line(error)
        if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
            raise RunnerError(f"{worker.name} cannot start: {reason}") from error
        ray.kill(worker.handle)
        worker.restarts += 1
        worker.life += 1
        self.counts[f"{worker.role}/restarts"] += 1
        _log.warning("%s was lost (%s); restart %d", worker.name, reason, worker.restarts)
        if worker.restarts <= self.config.ray.max_restarts:
            self._start(worker)
        elif worker.role == "actor" and len(self.actors) > 1:
            self.actors.remove(worker)
        else:
            raise RunnerError(f"{worker.name} is lost after {worker.restarts - 1} restarts ({reason})") from error

    def _replace_shard(self, index: int) -> None:
        """Items that came after the last checkpoint are lost."""
        ray.kill(self.shards[index])
        self.counts["replay/restarts"] += 1
        part, name = self._saved_shard(index), f"shard {index}"

        def restore(shard: Any) -> Any:  # noqa: ANN401
            return shard.stats.remote() if part is None else shard.load.remote(part, True)

        self.shards[index], stats = self._start_again(name, lambda: self._make_shard(index), restore)
        lost = max(int(self.shard_stats[index].get("inserts", 0) - stats["inserts"]), 0)
        self.shard_stats[index] = stats
        self.counts["replay/lost"] += lost
        _log.warning("%s was lost; %d items restored, the %d newest are lost", name, stats["size"], lost)

    def _start_again(self, name: str, make: Callable[[], Any], ask: Callable[[Any], Any]) -> tuple[Any, Any]:
        """(handle, first answer) of a new process; tries again while Ray puts it on a node that is just being lost."""
        until = time.monotonic() + self.config.ray.start_timeout_seconds
        while True:
            handle = make()
            try:
                answer = ray.get(ask(handle), timeout=max(until - time.monotonic(), 1.0))
                self.changed = time.monotonic()
                return handle, answer
            except ray.exceptions.RayTaskError as error:
                raise _failure(name, error) from error
            except ray.exceptions.RayError as error:
                ray.kill(handle)
                if time.monotonic() > until:
                    raise RunnerError(f"{name} was lost and cannot start again: {last_line(error)}") from error
                time.sleep(PAUSE_SECONDS)

    def refresh_shard_stats(self) -> None:
        """Asks the shards for their counters; a shard that does not answer is replaced."""
        references = [shard.stats.remote() for shard in self.shards]
        try:
            self.shard_stats = ray.get(references, timeout=self.config.ray.timeout_seconds / 2)
        except ray.exceptions.RayTaskError as error:
            raise _failure("a shard", error) from error
        except ray.exceptions.RayError:
            self.check_peers()

    def weights(self) -> Any:  # noqa: ANN401
        """The learner's averaged weights, from its successor if it dies meanwhile."""
        ray_config, learner = self.config.ray, self.learner
        while True:
            limit = ray_config.timeout_seconds + 2 * ray_config.slice_seconds
            if learner.starting is not None:
                limit += ray_config.start_timeout_seconds
            try:
                return ray.get(learner.handle.weights.remote(), timeout=limit)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, RankLost):
                    raise _failure(learner.name, error) from error
                self._replace(learner, error.cause)
            except ray.exceptions.RayError as error:
                self._replace(learner, error)

    def get(self, references: Any, what: str, timeout: float) -> Any:  # noqa: ANN401
        """`ray.get` whose failure is one line."""
        try:
            return ray.get(references, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise RunnerError(f"the driver waited {timeout:g} s for {what}, in vain") from None
        except ray.exceptions.RayError as error:
            raise RunnerError(f"{what} failed: {last_line(error)}") from error


def resharded(parts: Sequence[Part], count: int) -> list[Part]:
    """The parts of `count` shards out of those that a checkpoint has; see `system.replay.reshard`."""
    if len(parts) == count:
        return list(parts)
    return [state_part(state) for state in reshard([(part.arrays, part.scalars) for part in parts], count)]


def _is_loss_of_peer(error: ray.exceptions.RayTaskError) -> bool:
    """Whether the worker failed because a peer was gone or silent, and not by a bug, here or in the peer."""
    own = (ray.exceptions.RayTaskError, ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)
    return isinstance(error.cause, ray.exceptions.RayError) and not isinstance(error.cause, own)


def _failure(name: str, error: ray.exceptions.RayTaskError) -> RunnerError:
    """One line for a bug in a worker, or in a peer that it called; the traceback is in `error`."""
    called, raised = (re.findall(kind, str(error)) for kind in (r"ray::([\w.]+)\(", r'File "([^"]+)", line (\d+)'))
    where = f" ({raised[-1][0]}, line {raised[-1][1]})" if raised else ""
    return RunnerError(f"{name} failed{f' in {called[-1]}' if called else ''}: {last_line(error)}{where}")


def last_line(error: BaseException) -> str:
    """The last line of an error's text, of a remote traceback the error itself, without Ray's general advice."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().split(" Some common causes")[0] if lines else type(error).__name__
