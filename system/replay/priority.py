"""Priorities: how the prioritised draws choose among the items. Each has its own sum tree, and normalises it.

    uniform     m = 1
    residual    m = max(|delta|, floor)^a; a new item gets the largest mass there is, so that it is soon drawn
    likelihood  m = exp(a log p(y | x))                                                  `system.replay.log_weight`
    importance  m = min(w, mean(w) n^c),  w = exp(a log p(tau) p(y | x) / b(tau))        `system.replay.log_weight`
    rank        m = 1 / (k n + rank)                                                     `system.replay.rank`
    reshuffled  every item once, in random order, before any again                       `system.replay.reshuffled`

with a = `exponent`, n items of the same measurement. Residual: Schaul et al. 2016, eq. 1.

An item of zero likelihood (log-likelihood -inf) has zero mass under every priority.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from system.replay.messages import LogTotals
from system.replay.storage import TrajectoryStorage
from system.replay.sum_tree import SumTree

__all__ = [
    "PRIORITY_NAMES",
    "Priority",
    "PriorityName",
    "ResidualPriority",
    "TreePriority",
    "UniformPriority",
    "possible",
    "stratified",
]

PriorityName = Literal["uniform", "residual", "likelihood", "importance", "rank", "reshuffled"]
PRIORITY_NAMES: tuple[PriorityName, ...] = get_args(PriorityName)

_RESIDUAL_FLOOR = 1e-6  # nats; an item that once fitted exactly must remain possible to draw
_LARGEST_RESIDUAL_MASS = 1e100  # far below what the sum tree refuses


class Priority(ABC):
    """One way of drawing items of a storage."""

    @property
    @abstractmethod
    def total(self) -> float:
        """Mass of all items, comparable between shards."""

    @abstractmethod
    def place(self, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """Take in the items just written to `slots`."""

    def learn(self, slots: NDArray[np.int64], residuals: NDArray[np.float64]) -> None:  # noqa: B027
        """Take in finite `residuals` of the items in `slots`; most priorities do not depend on them."""

    @abstractmethod
    def probability(self, slots: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """Marginal probability with which each row of a draw of `count` is the item in each of `slots`."""

    @abstractmethod
    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """`count` slots; only where `total` is positive."""

    def drawn(self, slots: NDArray[np.int64]) -> None:  # noqa: B027
        """Take in that what `draw` gave has been drawn; few priorities care."""

    def log_totals(self) -> LogTotals:
        """What shards tell each other of their measurements; nothing where masses compare as they are."""
        return LogTotals.nothing()

    def refer(self, log_totals: LogTotals) -> None:  # noqa: B027
        """Take in the totals over all shards: masses are relative to these from the next renewal on."""

    @abstractmethod
    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All there is to go on with the same draws."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, NDArray[Any]], capacity: int) -> None:
        """Restore what `state_dict` gave, for a storage of `capacity` slots that holds the same items in them."""


class TreePriority(Priority):
    """A priority that is a mass of each item."""

    def __init__(self) -> None:
        self.tree: SumTree | None = None

    @property
    def total(self) -> float:
        """See `Priority`."""
        return 0.0 if self.tree is None else self.tree.total

    def place(self, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """See `Priority`."""
        if self.tree is None:
            self.tree = SumTree(storage.capacity)
        self.set_masses(self.tree, storage, slots)

    @abstractmethod
    def set_masses(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """Give mass to the items just written to `slots`."""

    def probability(self, slots: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """See `Priority`."""
        assert self.tree is not None
        return self.tree.get(slots) / self.tree.total

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """One slot from each of `count` equal shares of the mass (Schaul et al. 2016): lowers the variance only."""
        assert self.tree is not None
        total = self.tree.total
        return self.tree.sample(np.minimum(stratified(count, generator) * total, total))

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """See `Priority`."""
        return {} if self.tree is None else {"mass": np.trim_zeros(self.tree.leaves(), "b")}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], capacity: int) -> None:
        """See `Priority`."""
        self.tree = SumTree(capacity)
        self.tree.fill(state["mass"])


class UniformPriority(TreePriority):
    """The same mass for every item."""

    def set_masses(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """Mass one."""
        tree.set(slots, possible(storage, slots).astype(np.float64))


class ResidualPriority(TreePriority):
    """Mass by the size of the last residual the learner reported."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self._exponent = exponent

    def set_masses(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """The largest mass in the tree, one while there is none."""
        tree.set(slots, np.where(possible(storage, slots), tree.maximum or 1.0, 0.0))

    def learn(self, slots: NDArray[np.int64], residuals: NDArray[np.float64]) -> None:
        """Mass |residual|^exponent from now on."""
        assert self.tree is not None
        largest = _LARGEST_RESIDUAL_MASS ** (1 / self._exponent)
        self.tree.set(slots, np.clip(np.abs(residuals), _RESIDUAL_FLOOR, largest) ** self._exponent)


def possible(storage: TrajectoryStorage, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the likelihood of the items in `slots` is above zero."""
    above: NDArray[np.bool_] = storage.column("log_likelihood")[slots] > -np.inf
    return above


def stratified(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """One uniform number from each of `count` equal parts of [0, 1), in ascending order."""
    return (np.arange(count) + generator.random(count)) / max(count, 1)
