"""Objectives: functions from log-ratios and log-likelihoods to one residual per trajectory. The caller reduces.

An objective is one file and one line of `OBJECTIVES`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from learner.objectives.rtb import rtb
from learner.objectives.vargrad import vargrad

__all__ = ["OBJECTIVES", "Objective", "rtb", "vargrad"]


class Objective(Protocol):
    """The residual of each trajectory."""

    def __call__(
        self,
        log_ratio: Tensor,
        log_likelihood: Tensor,
        log_partition: Tensor,
        group: Tensor,
        beta: float = 1.0,
        huber: float | None = None,
    ) -> Tensor:
        """[B] float64; see `learner.objectives.rtb.rtb` for the arguments."""
        ...


OBJECTIVES: dict[str, Objective] = {"rtb": rtb, "vargrad": vargrad}
