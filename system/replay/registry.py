"""Priorities by name."""

from __future__ import annotations

from system.replay.log_weight import LogWeightPriority
from system.replay.priority import PRIORITY_NAMES, Priority, PriorityName, ResidualPriority, UniformPriority
from system.replay.rank import RankPriority
from system.replay.reshuffled import ReshuffledPriority

__all__ = ["build_priority"]


def build_priority(name: PriorityName, exponent: float, truncation: float) -> Priority:
    """The priority called `name`."""
    match name:
        case "uniform":
            return UniformPriority()
        case "residual":
            return ResidualPriority(exponent)
        case "likelihood":
            return LogWeightPriority(exponent, importance=False, truncation=1.0)
        case "importance":
            return LogWeightPriority(exponent, importance=True, truncation=truncation)
        case "rank":
            return RankPriority()
        case "reshuffled":
            return ReshuffledPriority()
    raise ValueError(f"priority must be one of {', '.join(PRIORITY_NAMES)}, got {name!r}")
