"""A tiny run: a mixture in the plane, ten steps, 16 hidden units, short slices; the first update comes in a second."""

import dataclasses
import os
import signal
import time

import pytest

pytest.importorskip("ray")

import ray

from system.assembly import build_problem
from system.checkpoint import CheckpointStore
from system.config import RunConfig
from system.config_file import config_from_tree
from system.distributed.runner import RayRunner

TREE = {
    "name": "tiny",
    "runner": "ray",
    "updates": 100_000,
    "problem": {"name": "gmm-linear", "dim": 2, "modes": 2, "num_steps": 10},
    "posterior": {"hidden": 16},
    "actor": {"batch_size": 16},
    "learner": {"batch_size": 32},
    "replay": {"min_size": 64, "max_items": 4096, "retry_seconds": 0.01},
    "evaluation": {"trajectories": 64, "final_trajectories": 64},
    "ray": {"num_actors": 2, "slice_seconds": 0.3, "timeout_seconds": 6.0, "cpus_per_actor": 0.5},
}


@pytest.fixture
def tiny():
    """Makes the tiny configuration, with other options of the runner."""

    def tiny(**ray_options) -> RunConfig:
        config = config_from_tree(TREE, "test")
        return dataclasses.replace(config, ray=dataclasses.replace(config.ray, **ray_options))

    return tiny


COUNTERS = {
    "actor/trajectories": "actor/restarts",
    "actor/restarts": None,
    "learner/updates": "learner/restarts",
    "learner/restarts": None,
    "replay/inserts": "replay/restarts",
    "replay/samples": "replay/restarts",
    "replay/restarts": None,
    "replay/lost": None,
    "system/likelihood_calls": None,
}
"""Numbers that never fall, but where the other one has risen: what a process had counted may go with it."""


class Run:
    """A RayRunner with the checkpoints that the run loop would make."""

    def __init__(self, config: RunConfig, path) -> None:
        self.store = CheckpointStore(path / "checkpoints")
        self.runner = RayRunner(config, build_problem(config), path)
        self.supervisor = self.runner.supervisor
        self.counted: dict[str, float] = {}

    def until(self, condition, seconds: float = 180.0) -> dict[str, float]:
        """Advances until the metrics meet `condition`; fails after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            metrics = self.runner.advance()
            self._check_counters(metrics)
            if condition(metrics):
                return metrics
            assert time.monotonic() < end, f"not met after {seconds} s: {metrics}"

    def _check_counters(self, metrics: dict[str, float]) -> None:
        for name, restarts in COUNTERS.items():
            before, now = self.counted.get(name, 0.0), metrics.get(name, 0.0)
            lost = restarts is not None and metrics.get(restarts, 0.0) > self.counted.get(restarts, 0.0)
            assert lost or name not in metrics or now >= before, f"{name} fell from {before} to {now}"
        self.counted |= {name: metrics[name] for name in COUNTERS if name in metrics}

    def save(self) -> int:
        """A checkpoint; the learner's number of updates in it."""
        tmp = self.store.begin(self.runner.updates)
        self.store.commit(tmp, self.runner.save(tmp))
        return self.store.load(only=("run",)).parts["run"].scalars["updates"]

    def process_of(self, handle) -> int:
        """Process id of a Ray actor on this machine."""
        return ray.get(handle.__ray_call__.remote(lambda self: os.getpid()), timeout=30)

    def kill(self, handle, number: int = signal.SIGKILL) -> int:
        """Sends a signal to the process of a Ray actor; its id."""
        process = self.process_of(handle)
        os.kill(process, number)
        return process


@pytest.fixture
def start(tmp_path):
    """Starts a run; ends it, and its Ray, with the test."""
    runs = []

    def start(config: RunConfig) -> Run:
        runs.append(Run(config, tmp_path))
        return runs[-1]

    yield start
    for run in runs:
        run.runner.close()
