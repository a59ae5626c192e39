"""The local runner: one actor, one shard and the learner take turns in this process. No Ray, reproducible bit for bit.

Whose turn it is follows from the shard's rate limiter alone, so a run with a budget of updates is a pure function of
its configuration, however often it is interrupted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.exploration import StartBy
from diffusion.trajectory import Trajectory
from envs import InverseProblem
from envs.asked import LikelihoodCalls
from learner import Diverged
from system.assembly import build_actor, build_learner, build_shard, noising_generator
from system.config import RunConfig
from system.errors import ConfigError, DivergedError, RunnerError
from system.part import Part, write_part
from system.replay.eviction import worth_sending
from system.runner import (
    add_counters,
    as_paths,
    exploration_metrics,
    replay_metrics,
    run_progress,
    state_part,
    update_metrics,
)

__all__ = ["LocalRunner"]

SLICE_SECONDS = 1.0
FILLING_SECONDS = 5.0  # of a slice without an update: replay is filling, and the progress wants to be seen
MAX_REFUSED = 20  # rollouts in a row of which nothing can be stored, before the run ends


class LocalRunner:
    """See `system.runner.Runner`."""

    def __init__(self, config: RunConfig, problem: InverseProblem) -> None:
        self.config = config
        self.problem = problem = dataclasses.replace(problem, calls=LikelihoodCalls())  # not those of who judges it
        self.learner = build_learner(config, problem)
        self.actor = build_actor(config, problem)
        self.shard = build_shard(config)
        self.trajectories = 0
        self._seconds_before = 0.0
        self._clock = time.process_time if config.clock == "cpu" else time.perf_counter
        self._start: float | None = None  # of the clock
        self._acting = 0.0
        self._refused = 0
        self._explorations: dict[str, float] = {}
        self._metrics: dict[str, float] = {}

    @property
    def updates(self) -> int:
        """See `Runner`."""
        return self.learner.updates

    @property
    def seconds(self) -> float:
        """See `Runner`."""
        running = 0.0 if self._start is None else self._clock() - self._start
        return self._seconds_before + running

    @property
    def progress(self) -> float:
        """Fraction of the run that is done."""
        config, calls = self.config, self.problem.calls.count
        return run_progress(
            self.updates, self.seconds, config.updates, config.max_seconds, calls, config.max_likelihood_calls
        )

    @property
    def finished(self) -> bool:
        """See `Runner`."""
        return self.progress >= 1.0

    def advance(self) -> dict[str, float]:
        """See `Runner`."""
        if self._start is None:
            self._start = self._clock()
        start, updates = time.perf_counter(), self.updates
        while not self.finished:
            seconds = time.perf_counter() - start
            if seconds >= (SLICE_SECONDS if self.updates > updates else FILLING_SECONDS):
                break
            self._turn()
        return self._metrics | self._counters()

    def _turn(self) -> None:
        learner = self.config.learner
        batch = self.shard.sample(learner.draw_size(self.progress), newest=not learner.pretrains(self.progress))
        if batch is not None:
            generator = noising_generator(self.config, self.problem, self.updates)
            trajectory = as_paths(batch.trajectory, self.problem.prior, generator)
            try:
                latest = self.config.actor.weights == "latest"
                update = self.learner.update(trajectory, self.progress, versions_hold=latest)
            except Diverged as error:
                raise DivergedError(f"training diverged: {error}") from error
            if update.residual is not None:
                self.shard.update_priorities(batch.ids, update.residual)
            self._metrics = update_metrics(update, trajectory, self.learner.updates)
            return
        started = time.perf_counter()
        self.actor.load_weights(*self.weights_for_actor(), self.progress)
        trajectory = self.actor.act(self._starts)
        add_counters(self._explorations, self.actor.take_counters())
        try:
            rows = worth_sending(trajectory, self.shard.floors)
            reply = self.shard.insert(trajectory.take(rows), filtered=len(trajectory) - len(rows))
        except ValueError as error:  # how large an item is, and so whether the budget holds enough, shows here first
            raise ConfigError(f"replay: {error}; raise replay.capacity_bytes") from None
        except MemoryError as error:
            raise ConfigError(
                f"replay: {error}; lower replay.capacity_bytes or max_items, or set replay.spill_directory"
            ) from None
        if not reply.accepted:
            raise RunnerError("replay refuses samples and inserts at once; raise replay.tolerance")
        self._refused = self._refused + 1 if reply.refused == len(trajectory) else 0
        if self._refused == MAX_REFUSED:
            raise RunnerError(
                f"not one trajectory of the last {MAX_REFUSED} rollouts has finite states and a finite "
                f"log-likelihood; check the likelihood of problem {self.problem.name!r} "
                f"({type(self.problem.likelihood).__name__}): {_finite(trajectory)}"
            )
        self.trajectories += len(trajectory)
        self._acting += time.perf_counter() - started

    def weights_for_actor(self) -> tuple[NDArray[np.float32], int]:
        """(weights, their version) that the actor rolls out with next: the learner's present ones."""
        return self.learner.weights(averaged=self.config.actor.weights == "averaged"), self.learner.updates

    def _starts(self, count: int, by: StartBy) -> Trajectory | None:
        stored = self.shard.starts(count, by)
        return None if stored is None else as_paths(stored, self.problem.prior, self.actor.generator)

    def _counters(self) -> dict[str, float]:
        return {
            "actor/trajectories": float(self.trajectories),
            "actor/seconds": self._acting,
            "actor/restarts": 0.0,
            "learner/updates": float(self.updates),
            "learner/set_aside": float(self.learner.guard.set_aside),
            "learner/rollbacks": float(self.learner.guard.rollbacks),
            "learner/reinitialised": float(self.learner.reinitialised),
            "system/likelihood_calls": float(self.problem.calls.count),
            "system/progress": self.progress,
            **exploration_metrics(self._explorations),
            **replay_metrics([dataclasses.asdict(self.shard.stats())]),
        }

    def weights(self) -> NDArray[np.float32]:
        """See `Runner`."""
        return self.learner.weights(averaged=True)

    def save(self, directory: Path) -> tuple[str, ...]:
        """See `Runner`."""
        run = {
            "seconds": self.seconds,
            "trajectories": self.trajectories,
            "likelihood_calls": self.problem.calls.count,
            "acting": self._acting,
            "explorations": dict(self._explorations),
            "config": self.config.to_yaml(),
        }
        parts = {
            "run": Part(scalars=run),
            "learner": state_part(self.learner.state_dict()),
            "actor-0": state_part(self.actor.state_dict()),
            "replay-0": state_part(self.shard.state_dict()),
        }
        for name, part in parts.items():
            write_part(directory, name, part)
        return tuple(parts)

    def load(self, parts: Mapping[str, Part]) -> None:
        """See `Runner`."""
        run = parts["run"].scalars
        self._seconds_before, self._acting = float(run["seconds"]), float(run["acting"])
        self.trajectories = int(run["trajectories"])
        self._explorations = dict(run["explorations"])
        self.problem.calls.count = int(run.get("likelihood_calls", 0))  # earlier checkpoints did not count them
        for target, name in ((self.learner, "learner"), (self.actor, "actor-0"), (self.shard, "replay-0")):
            target.load_state_dict(parts[name].arrays, parts[name].scalars)

    def close(self) -> None:
        """See `Runner`; there is nothing to end."""


def _finite(trajectory: Trajectory) -> str:
    """What of `trajectory` is finite, in words: states that are not are the gradient's doing as a rule."""
    count = len(trajectory)
    moved = int(np.isfinite(trajectory.states).reshape(count, -1).all(1).sum())
    scored = int(np.isfinite(trajectory.log_likelihood).sum())
    return f"of the last {count} trajectories {moved} have finite states, and {scored} a finite log p(y | x)"
