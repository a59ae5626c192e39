r"""Tournaments: a choice of stored items by a score, whose probability is known.

Of K entrants, drawn uniformly and with replacement from n items, those compete that are of the first one's measurement;
the best score wins, the first entrant among equals. In a share e of the tournaments the first entrant wins at once. Of
the n_m items of a measurement let r be better than item i and t as good as it, itself included. An item of the t wins a
contest if and only if the first entrant is of m, none is of the r, and one at least is of the t, so

    P(i) = (1 - e) [f(r) - f(r + t)] / t + e / n,    f(r) = (n_m - r) / n  ((n - r) / n)^(K-1).

A path drawn so is drawn from P(i) instead of 1 / n, and log n P(i) belongs to the density that it was drawn from. It is
log e at least, so no importance weight grows more than 1 / e times (a defensive mixture, Hesterberg 1995); without that
share the worst of n items would be drawn never, and stand for what nobody has seen with a weight of n^(K-1) / K.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["log_choice_ratio", "tournament"]

UNCONTESTED = 0.2  # e


def tournament(
    score: NDArray[np.floating],  # [N] larger is better
    measurement_id: NDArray[np.int64],  # [N]
    count: int,
    entrants: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """[count] rows of the winners."""
    rows = generator.integers(len(score), size=(count, entrants))
    measurement = measurement_id[rows]
    rivals = np.where(measurement == measurement[:, :1], score[rows], -np.inf)
    place = np.where(generator.random(count) < UNCONTESTED, 0, rivals.argmax(axis=1))
    winners: NDArray[np.int64] = rows[np.arange(count), place]
    return winners


def log_choice_ratio(
    score: NDArray[np.floating],  # [N]
    measurement_id: NDArray[np.int64],  # [N]
    winners: NDArray[np.int64],  # [B]
    entrants: int,
) -> NDArray[np.float64]:
    """[B] log n P(i) of the `winners`, nats; zero for a choice that is no choice."""
    size, ratio = len(score), np.zeros(len(winners))
    for measurement in np.unique(measurement_id[winners]):
        chosen = measurement_id[winners] == measurement
        own = np.sort(score[measurement_id == measurement])
        value = score[winners[chosen]]
        better = len(own) - np.searchsorted(own, value, side="right")
        equal = len(own) - np.searchsorted(own, value, side="left") - better

        def none_of(first: NDArray[np.intp], count: int = len(own)) -> NDArray[np.float64]:
            left: NDArray[np.float64] = (count - first) / size * ((size - first) / size) ** (entrants - 1)
            return left

        contested = size * (none_of(better) - none_of(better + equal)) / equal
        ratio[chosen] = np.log((1 - UNCONTESTED) * contested + UNCONTESTED)
    return ratio
