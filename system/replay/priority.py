"""Priorities: which mass an item has among the prioritised draws.

    uniform     m = 1
    residual    m = max(|delta|, floor)^a; a new item gets the largest mass there is, so that it is soon drawn
    likelihood  m = exp(a log p(y | x))
    importance  m = min(w, mean(w) n^c),  w = exp(a log p(tau) p(y | x) / b(tau)),  n items, c = 1/2

with a = `exponent`. Residual: Schaul et al. 2016, eq. 1. Importance: draws stand for the posterior path measure,
whatever kernel b made the paths; the cap is truncated importance sampling (Ionides 2008), c = 1 being no cap.

The two log-space kinds are normalised for each measurement by itself, to a total of one: log-weights of different
measurements differ by their evidence, and the most probable measurement would otherwise get all the draws. Paths with
measurements of their own count as one more measurement. Within a measurement, masses are relative to a stored
log-normaliser, so weights of e^(+-10000) neither overflow nor vanish together. A new item is placed with the stored
normaliser and cap of its measurement; both are recomputed over all items when 1/16 of the items are new, when a
measurement is new, or when an item outweighs its measurement by more than 50 nats. That is O(16) a new item on
average, and nothing at draw time; what is stale in between is the share of a measurement and its cap, by the weight of
that sixteenth. The probability reported with a draw is exact at all times.

An item of zero likelihood (log-likelihood -inf) has zero mass under every priority.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion.trajectory import Trajectory
from system.replay.storage import TrajectoryStorage
from system.replay.sum_tree import SumTree

__all__ = ["PRIORITY_NAMES", "Priority", "PriorityName", "build_priority", "is_storable", "normalised_masses"]

PriorityName = Literal["uniform", "residual", "likelihood", "importance"]
PRIORITY_NAMES: tuple[PriorityName, ...] = get_args(PriorityName)

_RESIDUAL_FLOOR = 1e-6  # nats; an item that once fitted exactly must remain possible to draw
_LARGEST_RESIDUAL_MASS = 1e100  # far below what the sum tree refuses
_REBASE_NATS = 50.0
_RENEWED_SHARE = 16  # all masses are computed anew when one item in this many is new


class Priority(ABC):
    """Gives the items of one storage their masses in one tree."""

    @abstractmethod
    def place(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """Give mass to the items just written to `slots`."""

    def learn(self, tree: SumTree, slots: NDArray[np.int64], residuals: NDArray[np.float64]) -> None:  # noqa: B027
        """Take in finite `residuals` of the items in `slots`; most priorities do not depend on them."""

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """What is kept beside the masses themselves."""
        return {}

    def load_state_dict(self, state: Mapping[str, NDArray[np.float64]]) -> None:  # noqa: B027
        """Restore what `state_dict` gave."""


class UniformPriority(Priority):
    """The same mass for every item."""

    def place(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """Mass one."""
        tree.set(slots, _is_possible(storage, slots).astype(np.float64))


class ResidualPriority(Priority):
    """Mass by the size of the last residual the learner reported."""

    def __init__(self, exponent: float) -> None:
        self._exponent = exponent

    def place(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """The largest mass in the tree, one while there is none."""
        tree.set(slots, np.where(_is_possible(storage, slots), tree.maximum or 1.0, 0.0))

    def learn(self, tree: SumTree, slots: NDArray[np.int64], residuals: NDArray[np.float64]) -> None:
        """Mass |residual|^exponent from now on."""
        largest = _LARGEST_RESIDUAL_MASS ** (1 / self._exponent)
        tree.set(slots, np.clip(np.abs(residuals), _RESIDUAL_FLOOR, largest) ** self._exponent)


class LogWeightPriority(Priority):
    """Mass by a log-weight that is known when the item arrives, normalised for each measurement."""

    def __init__(self, exponent: float, importance: bool, truncation: float) -> None:
        self._exponent = exponent
        self._importance = importance
        self._truncation = truncation
        self._new_items = 0
        # Of every measurement, in ascending order of id: log of the sum of weights, log of the largest one allowed.
        self._measurement = np.zeros(0, dtype=np.int64)
        self._log_normaliser = np.zeros(0)
        self._log_cap = np.zeros(0)

    def place(self, tree: SumTree, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> None:
        """Mass relative to the item's measurement; renews all masses where the stored normalisers will not do."""
        self._new_items += len(slots)
        if self._new_items * _RENEWED_SHARE >= len(storage):
            self._renew(tree, storage)
            return
        log_weight = self._log_weight(storage, slots)
        measurement = storage.column("measurement_id")[slots]
        row = np.searchsorted(self._measurement, measurement).clip(max=len(self._measurement) - 1)
        known = (self._measurement[row] == measurement) & np.isfinite(self._log_normaliser[row])
        if not known.all() or np.any(log_weight - self._log_normaliser[row] > _REBASE_NATS):
            self._renew(tree, storage)
            return
        tree.set(slots, np.exp(np.minimum(log_weight, self._log_cap[row]) - self._log_normaliser[row]))

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """Normalisers and caps, and how many items are newer than they are."""
        return {
            "measurement": self._measurement.astype(np.float64),
            "log_normaliser": self._log_normaliser.copy(),
            "log_cap": self._log_cap.copy(),
            "new_items": np.array([self._new_items], dtype=np.float64),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Restore what `state_dict` gave."""
        self._measurement = np.asarray(state["measurement"]).astype(np.int64)
        self._log_normaliser = np.array(state["log_normaliser"])
        self._log_cap = np.array(state["log_cap"])
        self._new_items = int(state["new_items"][0])

    def _renew(self, tree: SumTree, storage: TrajectoryStorage) -> None:
        slots = np.arange(len(storage))
        masses, self._measurement, self._log_normaliser, self._log_cap = normalised_masses(
            self._log_weight(storage, slots), storage.column("measurement_id"), self._truncation
        )
        tree.fill(masses)
        self._new_items = 0

    def _log_weight(self, storage: TrajectoryStorage, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        log_weight = storage.column("log_likelihood")[slots].astype(np.float64)
        if self._importance:
            log_weight = log_weight - storage.column("log_behaviour_ratio")[slots]
        scaled: NDArray[np.float64] = self._exponent * log_weight
        return scaled


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
    raise ValueError(f"priority must be one of {', '.join(PRIORITY_NAMES)}, got {name!r}")


def normalised_masses(
    log_weight: NDArray[np.float64],  # [N]
    measurement_id: NDArray[np.int64],  # [N]
    truncation: float,  # c
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Masses that sum to one for every measurement, and how they came about.

    m_i = min(w_i, cap) / sum_j min(w_j, cap),  cap = mean(w) n^c,  over the n items of the same measurement

    Returns:
        masses [N]; the M measurements, their log sum_j min(w_j, cap), and their log cap, [M] each.
    """
    measurement, group = np.unique(measurement_id, return_inverse=True)
    count = np.bincount(group)
    peak = np.full(len(measurement), -np.inf)
    np.maximum.at(peak, group, log_weight)
    possible = np.isfinite(peak)
    reference = np.where(possible, peak, 0.0)
    weight = np.exp(log_weight - reference[group])
    cap = np.bincount(group, weight) / count * count.astype(np.float64) ** truncation
    if truncation == 1:
        cap = np.full(len(measurement), np.inf)  # no weight exceeds the sum, but one yet to come may exceed this sum
    weight = np.minimum(weight, cap[group])
    total = np.where(possible, np.bincount(group, weight), 1.0)
    log_normaliser = np.where(possible, reference + np.log(total), -np.inf)
    log_cap = np.where(possible, reference + np.log(np.where(possible, cap, 1.0)), -np.inf)
    return weight / total[group], measurement, log_normaliser, log_cap


def is_storable(trajectory: Trajectory) -> NDArray[np.bool_]:
    """[B] False where a number is NaN or a log-weight +inf: one such item would spoil every sum it is part of."""
    with np.errstate(invalid="ignore"):  # -inf + inf is NaN, which is what is asked for here
        log_importance = trajectory.log_importance
    storable: NDArray[np.bool_] = (log_importance < np.inf) & (trajectory.log_likelihood < np.inf)
    optional = (trajectory.denoised, trajectory.guidance, trajectory.measurement)
    for numbers in (trajectory.states, trajectory.log_prior, *optional):
        if numbers is not None:
            storable &= np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim)))
    return storable


def _is_possible(storage: TrajectoryStorage, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    possible: NDArray[np.bool_] = storage.column("log_likelihood")[slots] > -np.inf
    return possible
