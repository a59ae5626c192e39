"""Trajectories: the message that actors send to replay and replay sends to the learner.

Sampling order everywhere: ``states[:, 0]`` is noise, ``states[:, -1]`` is x. Arrays are numpy, because they cross
process boundaries; the learner turns them into tensors at its door.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Origin", "Trajectory", "concatenate"]


class Origin(IntEnum):
    """Which kind of actor made a trajectory."""

    ON_POLICY = 0
    NOISE_INFLATED = 1
    PRIOR = 2
    EXACT = 3
    PATH_SEARCH = 4
    BACKTRACKING = 5
    LANGEVIN = 6
    TEACHER = 7
    GUIDED = 8
    JOINT = 9
    ANNEALED = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """A batch of B denoising trajectories with T transitions in the event shape ``*D``."""

    uid: NDArray[np.uint64]
    """[B] unique over the whole run, so that a retried insert is not stored twice."""
    states: NDArray[np.float32]
    """[B, T+1, *D] noise first, x last."""
    log_prior: NDArray[np.float32]
    """[B, T] log p(s_k+1 | s_k), nats. The prior never changes, so the actor computes it once."""
    log_behaviour_ratio: NDArray[np.float32]
    """[B] sum over k of log b(s_k+1 | s_k) - log p(s_k+1 | s_k), nats, b being the kernel the path was drawn from."""
    log_likelihood: NDArray[np.float32]
    """[B] log p(y | x), untempered, nats."""
    measurement_id: NDArray[np.int64]
    """[B] row of the problem's measurements, or a negative number where y was simulated and the path brings it along:
    the same one for all paths of one y, unique over the whole run."""
    policy_version: NDArray[np.int64]
    """[B] version of the weights that made it, for measuring staleness."""
    origin: NDArray[np.uint8]
    """[B] see `Origin`."""
    denoised: NDArray[np.float32] | None = None
    """[B, T, *D] the prior's estimate x^ of x at every state, or None to recompute it when needed."""
    guidance: NDArray[np.float32] | None = None
    """[B, T, *D] gradient of log p(y | x^(s_k)) with respect to s_k, or None to recompute it when needed."""
    measurement: NDArray[np.float32] | None = None
    """[B, *Y] y, or None where every path has a row of the problem's measurements."""

    def __post_init__(self) -> None:
        if self.log_prior.ndim != 2:
            raise ValueError(f"log_prior must be [B, T], got shape {self.log_prior.shape}")
        batch, steps = self.log_prior.shape
        if self.states.shape[:2] != (batch, steps + 1):
            raise ValueError(f"states must be [{batch}, {steps + 1}, ...] to match log_prior, got {self.states.shape}")
        for name in ("denoised", "guidance"):
            value, expected = getattr(self, name), (batch, steps, *self.states.shape[2:])
            if value is not None and value.shape != expected:
                raise ValueError(f"{name} must be {expected} to match states, got {value.shape}")
        if self.measurement is not None and len(self.measurement) != batch:
            raise ValueError(f"measurement must be [{batch}, ...] to match log_prior, got {self.measurement.shape}")
        for name in _PER_TRAJECTORY:
            shape = getattr(self, name).shape
            if shape != (batch,):
                raise ValueError(f"{name} must be [{batch}] to match log_prior, got {shape}")
        lowest = int(self.measurement_id.min(initial=0))
        if lowest < 0 and self.measurement is None:
            raise ValueError(f"measurement_id must be a row where measurement is not given, got {lowest}")

    def __len__(self) -> int:
        return len(self.uid)

    @property
    def num_steps(self) -> int:
        """Number of transitions T."""
        return self.log_prior.shape[1]

    @property
    def samples(self) -> NDArray[np.float32]:
        """[B, *D] the clean end points x."""
        return self.states[:, -1]

    @property
    def log_importance(self) -> NDArray[np.float64]:
        """[B] log p(tau) p(y | x) / b(tau): weights under which the batch stands for the posterior."""
        return self.log_likelihood.astype(np.float64) - self.log_behaviour_ratio

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Fields by name, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def take(self, rows: NDArray[np.integer] | slice) -> Trajectory:
        """The trajectories at `rows`."""
        return Trajectory(**{name: value[rows] for name, value in self.arrays().items()})


_PER_TRAJECTORY = (
    "uid",
    "log_behaviour_ratio",
    "log_likelihood",
    "measurement_id",
    "policy_version",
    "origin",
)


def concatenate(batches: Sequence[Trajectory]) -> Trajectory:
    """One batch out of several of the same problem."""
    if not batches:
        raise ValueError("concatenate needs at least one batch of trajectories, got none")
    parts = [batch.arrays() for batch in batches]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError("batches must agree on whether they carry denoised estimates, guidance and measurements")
    return Trajectory(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
