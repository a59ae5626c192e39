r"""Measurements drawn by simulation: every rollout is of new ones, so that the posterior is learned for all y.

An actor draws R measurements, y' ~ p(y') by a path tau of the prior and y' ~ p(y' | x), and makes B / R trajectories of
each: the path tau itself, an exact draw of the posterior at y' (`actors.joint_simulation`), and B / R - 1 of whatever
kind has its turn. `vargrad` centres the residual over the trajectories of one measurement, so every y' needs two or
more; a log Z that is a network of y needs one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.rollout import Rollout
from diffusion.trajectory import Trajectory
from envs.problem import InverseProblem

__all__ = ["joined", "with_stored_measurements"]


def with_stored_measurements(problem: InverseProblem, stored: Trajectory) -> tuple[InverseProblem, Trajectory]:
    """The problem of the measurements that `stored` bring along, if they do, and `stored` numbered by its rows."""
    if stored.measurement is None:
        return problem, stored
    rows: NDArray[np.int64] = np.arange(len(stored), dtype=np.int64)
    measurement = torch.from_numpy(np.array(stored.measurement))
    return problem.at(measurement), dataclasses.replace(stored, measurement_id=rows)


def joined(exact: Rollout, others: Rollout) -> Rollout:
    """One rollout of the exact paths [R] of simulated measurements and `others` of them, numbered -1..-R.

    `others` have the rows 0..R-1 of the measurements that `exact` brings.
    """
    assert exact.measurement is not None
    rows = others.measurement_id
    others = dataclasses.replace(others, measurement_id=-1 - rows, measurement=exact.measurement[rows])
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Rollout):
        first, second = getattr(exact, field.name), getattr(others, field.name)
        values[field.name] = torch.cat([first, second]) if isinstance(first, Tensor) else second
    return Rollout(**values)
