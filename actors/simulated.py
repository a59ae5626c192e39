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
from torch import Tensor

from actors.exploration import Exploration, FromStored
from actors.joint_simulation import JointSimulation
from actors.rollout import Rollout
from diffusion.posterior import Posterior
from diffusion.trajectory import Trajectory
from envs.problem import InverseProblem

__all__ = ["explore_from_stored", "explore_simulated"]


def explore_simulated(
    exploration: Exploration,
    simulation: JointSimulation,
    problem: InverseProblem,
    posterior: Posterior,
    number: int,
    count: int,
    progress: float,
    generator: torch.Generator,
) -> Rollout:
    """`count` trajectories of `number` new measurements, -1, -2, ...: the exact paths first, then those explored."""
    anywhere = torch.zeros(number, dtype=torch.int64)
    exact = simulation.explore(problem, posterior, anywhere, progress, generator)
    assert exact.measurement is not None
    rows = torch.arange(number).repeat(count // number - 1)
    others = exploration.explore(problem.at(exact.measurement), posterior, rows, progress, generator)
    rows = others.measurement_id
    others = dataclasses.replace(others, measurement_id=-1 - rows, measurement=exact.measurement[rows])
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Rollout):
        first, second = getattr(exact, field.name), getattr(others, field.name)
        values[field.name] = torch.cat([first, second]) if isinstance(first, Tensor) else second
    return Rollout(**values)


def explore_from_stored(
    exploration: FromStored,
    problem: InverseProblem,
    posterior: Posterior,
    stored: Trajectory,
    progress: float,
    generator: torch.Generator,
) -> Rollout:
    """Trajectories that start from those `stored`, of the same measurements, which these may bring along."""
    if stored.measurement is None:
        return exploration.explore_from(problem, posterior, stored, progress, generator)
    own = problem.at(torch.as_tensor(np.array(stored.measurement)))
    numbered = dataclasses.replace(stored, measurement_id=np.arange(len(stored), dtype=np.int64))
    rollout = exploration.explore_from(own, posterior, numbered, progress, generator)
    rows = rollout.measurement_id
    ids = torch.as_tensor(np.array(stored.measurement_id))[rows]
    return dataclasses.replace(rollout, measurement_id=ids, measurement=own.measurements[rows])
