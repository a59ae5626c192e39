"""The choice among several shards, such that a draw is one from all their items together.

The draw from one place that holds everything would be

    P(i) = sum_c s_c m_c(i) / M_c,   M_c = sum_s M_cs,

c being the newest window and the priorities, s the shards. With g_cs = M_cs / M_c that is to choose the shard with

    q_s = sum_c s_c g_cs,   and within it to draw with the shares   s_c g_cs / q_s.

The masses M_cs are a few seconds old when they are used. That makes P(i) a little other than it should be; what is
reported with a draw is q_s times the probability within the shard at that moment, which is exact all the same.

Shards come in turn, the one next that is furthest behind its q_s: of alike shards, round robin. Every shard's pace
counts the same number of draws, whichever shard gives them, as actors insert into all of them alike; so most often the
shard that gives a draw takes the turn too, and another where it is ahead of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from system.replay.messages import LogTotals, ShardMass, Weighting

__all__ = ["ShardChoice", "Turn"]

_LEAD = 1  # turns that a shard may be ahead of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One draw."""

    shard: int
    """Which shard gives it."""
    pace: int
    """Whose pace counts it."""
    weighting: Weighting
    """How it is to be drawn."""


class ShardChoice:
    """Turns of `count` shards."""

    def __init__(self, count: int) -> None:
        self._held: NDArray[np.float64] | None = None  # [S, 1 + C] g_cs, once any shard has an item
        self._probability = np.full(count, 1 / count)  # q_s of the last turn
        self._behind = np.zeros(count)  # draws that each shard is behind its probability
        self._taken = np.zeros(count, dtype=np.int64)  # turns by pace
        self._refused = 0  # how often in a row
        self.complete = False
        """Whether every shard had an item when last heard of."""

    def update(self, masses: Sequence[ShardMass]) -> tuple[LogTotals, ...]:
        """Take in what each shard holds now; what all of them hold together, for `ReplayShard.refer`."""
        size = np.array([mass.size for mass in masses], dtype=np.float64)
        self.complete = bool((size > 0).all())
        if size.any():
            parts = np.array([[mass.newest, *mass.totals] for mass in masses])
            parts = np.where(parts.any(axis=0), parts, size[:, None])  # without any mass, every item is as likely
            self._held = parts / parts.sum(axis=0)
        return tuple(LogTotals.together(parts) for parts in zip(*(mass.log_totals for mass in masses), strict=True))

    def next(self, shares: NDArray[np.float64]) -> Turn:
        """The next draw, with the `shares` [1 + C] of `ReplayConfig.shares`."""
        joint = np.tile(shares / len(self._taken), (len(self._taken), 1)) if self._held is None else shares * self._held
        self._probability = joint.sum(axis=1)
        self._behind += self._probability
        shard = int(self._behind.round(9).argmax())  # so that rounding does not upset the order of alike shards
        self._behind[shard] -= 1
        ahead = self._taken[shard] - self._taken.min()
        first = shard if ahead <= _LEAD else int(self._taken.argmin())
        pace = (first + self._refused) % len(self._taken)
        self._taken[pace] += 1
        probability = float(self._probability[shard])
        weighting = Weighting(choice=probability, shares=joint[shard] / probability)
        return Turn(shard=shard, pace=pace, weighting=weighting)

    def refused(self, turn: Turn) -> None:
        """Take back a turn that came to nothing; the next one asks another shard whether its pace allows it."""
        self._behind[turn.shard] += 1
        self._behind -= self._probability
        self._taken[turn.pace] -= 1
        self._refused += 1

    def accepted(self) -> None:
        """Note that a draw was made."""
        self._refused = 0
