"""What the run loop asks of a runner, local or distributed, and what both kinds measure alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.end_points import EndPoints
from diffusion.prior import Prior
from diffusion.trajectory import Trajectory
from learner import Update
from system.part import Part

__all__ = [
    "Runner",
    "Trains",
    "add_counters",
    "as_paths",
    "exploration_metrics",
    "only_impossible",
    "replay_metrics",
    "run_progress",
    "state_part",
    "update_metrics",
]


class Trains(Protocol):
    """What the loop of a training asks of what is trained."""

    @property
    def updates(self) -> int:
        """Optimiser steps made so far, those before a resume included."""
        ...

    @property
    def seconds(self) -> float:
        """Training time so far, that before a resume included."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the budget of updates, seconds or likelihood calls is spent."""
        ...

    def advance(self) -> dict[str, float]:
        """Trains for a moment (a second or two) and returns the newest metrics."""
        ...

    def save(self, directory: Path) -> tuple[str, ...]:
        """Writes the parts of a checkpoint into `directory` and returns their names."""
        ...

    def load(self, parts: Mapping[str, Part]) -> None:
        """Takes up the state of a checkpoint; called before the first `advance`."""
        ...


class Runner(Trains, Protocol):
    """Actors, replay and learner of one run."""

    def weights(self) -> NDArray[np.float32]:
        """The averaged weights, as one flat vector."""
        ...

    def close(self) -> None:
        """Ends every process that the runner started; harmless when called twice."""
        ...


def run_progress(
    updates: int,
    seconds: float,
    max_updates: int,
    max_seconds: float | None,
    calls: int = 0,
    max_calls: int | None = None,
) -> float:
    """Fraction of the run that is done: by updates, or by time or calls of the likelihood where that is further on."""
    done = updates / max_updates
    if max_calls is not None:
        done = max(done, calls / max_calls)
    if max_seconds is not None:
        done = max(done, seconds / max_seconds)
    return min(done, 1.0)


def update_metrics(update: Update, trajectory: Trajectory, version: int) -> dict[str, float]:
    """Metrics of one optimiser step."""
    lag = version - 1 - trajectory.policy_version
    metrics = {
        "learner/loss": update.loss,
        "learner/gradient_norm": update.gradient_norm,
        "learner/beta": update.beta,
        "learner/lag_mean": float(lag.mean()),
        "learner/lag_median": float(np.median(lag)),
        "learner/lag_p90": float(np.quantile(lag, 0.9)),
        "learner/lag_max": float(lag.max()),
    }
    if update.residual_std is not None:
        metrics["learner/residual_std"] = update.residual_std
    if update.joint_log_weight is not None:
        metrics["learner/joint_log_weight"] = update.joint_log_weight
    return metrics


def as_paths(stored: Trajectory | EndPoints, prior: Prior, generator: torch.Generator) -> Trajectory:
    """What replay gives, as paths: those that it stores, or others to the ends that it stores."""
    return stored if isinstance(stored, Trajectory) else stored.noised(prior, generator)


def replay_metrics(shards: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of the replay: counts are summed over the shards, ratios averaged."""
    metrics = {}
    for name in shards[0]:
        values = [float(shard[name]) for shard in shards]
        mean = name.startswith("samples_per_insert")
        metrics[f"replay/{name}"] = sum(values) / (len(values) if mean else 1)
    return metrics


def add_counters(total: dict[str, float], fresh: Mapping[str, float]) -> None:
    """Adds the sums of `Actor.take_counters` to those so far."""
    for key, value in fresh.items():
        total[key] = total.get(key, 0.0) + value


def exploration_metrics(counters: Mapping[str, float]) -> dict[str, float]:
    """Metrics of every kind of exploration, from the sums of `Actor.take_counters`."""
    metrics: dict[str, float] = {}
    for key, made in counters.items():
        kind, _, name = key.rpartition("/")
        if name != "trajectories":
            continue
        metrics |= {f"actor/{kind}/trajectories": made, f"actor/{kind}/seconds": counters[f"{kind}/seconds"]}
        invalid = metrics[f"actor/{kind}/invalid"] = counters.get(f"{kind}/invalid", 0.0)
        metrics[f"actor/{kind}/impossible"] = made - invalid - counters.get(f"{kind}/finite", 0.0)
        if counters.get(f"{kind}/finite", 0) > 0:
            metrics[f"actor/{kind}/log_likelihood"] = counters[f"{kind}/log_likelihood"] / counters[f"{kind}/finite"]
        if counters.get(f"{kind}/proposals", 0) > 0:
            metrics[f"actor/{kind}/acceptance"] = counters[f"{kind}/accepted"] / counters[f"{kind}/proposals"]
    return metrics


def only_impossible(metrics: Mapping[str, float], least: int = 1) -> str | None:
    """A sentence for a run of which none of at least `least` trajectories has a likelihood above zero; else None."""
    of_kinds = [key.split("/") for key in metrics if key.startswith("actor/") and key.count("/") == 2]
    made, zero = (
        sum(metrics["/".join(key)] for key in of_kinds if key[2] == name) for name in ("trajectories", "impossible")
    )
    if made < least or zero < made:
        return None
    return (
        f"none of {made:.0f} trajectories has a likelihood above zero, so there is nothing to learn from: look at the "
        "likelihood's support and at the measurement, or give it noise"
    )


def state_part(state: tuple[dict[str, NDArray[np.generic]], dict[str, object]]) -> Part:
    """The part of a checkpoint that holds the state_dict of one object."""
    arrays, scalars = state
    return Part(arrays=arrays, scalars=scalars)
