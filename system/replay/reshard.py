"""The states of S shards as those of another number of shards.

All items are put in order of their age and dealt out, so every new shard holds as many of every age; what does not fit
its budget is left out as eviction would have it. Masses are given anew, under which residuals that are known go on;
ids from before are void. The limiters go on with the same pace (`split_limiters`); random streams start anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.replay.rate_limiter import split_limiters

__all__ = ["reshard"]

State = tuple[Mapping[str, NDArray[np.generic]], Mapping[str, Any]]

_COUNTERS = ("refused", "filtered", "late_priorities", "nonfinite_priorities")
_STORAGE_COUNTERS = ("duplicates", "evictions")


def reshard(states: Sequence[State], count: int) -> list[tuple[dict[str, NDArray[np.generic]], dict[str, Any]]]:
    """States of `count` shards, for `ReplayShard.load_state_dict`, that hold what those of `states` hold together."""
    filled = [state for state in states if "storage.uid" in state[0]]
    together: dict[str, NDArray[Any]] = {}
    if filled:
        names = [name for name in filled[0][0] if not name.startswith("priority.")]
        together = {name: np.concatenate([arrays[name] for arrays, _ in filled]) for name in names}
        together["storage.generation"][:] = together["storage.generation"].max()
        age = [scalars["storage"]["count"] - 1 - arrays["storage.serial"] for arrays, scalars in filled]
        order = np.argsort(-np.concatenate(age), kind="stable")
        together = {name: value[order] for name, value in together.items()}
    limiters = split_limiters([scalars["limiter"] for _, scalars in states], count)
    return [_deal(index, count, states, together, limiters[index]) for index in range(count)]


def _deal(
    index: int, count: int, states: Sequence[State], together: Mapping[str, NDArray[Any]], limiter: dict[str, Any]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    arrays: dict[str, NDArray[np.generic]] = {name: value[index::count] for name, value in together.items()}
    items = len(arrays["storage.uid"]) if arrays else 0
    if not items:
        arrays = {"residual": np.zeros(0, dtype=np.float32)}
    else:
        arrays["storage.serial"] = np.arange(items)
    first = max(scalars["storage"]["first_generation"] for _, scalars in states)
    storage: dict[str, Any] = {"capacity": None, "count": items, "first_generation": first, "last_measurement": -1}
    for name in _STORAGE_COUNTERS:
        storage[name] = _part([scalars["storage"][name] for _, scalars in states], index, count)
    shard: dict[str, Any] = {"storage": storage, "limiter": limiter, "generator": None, "priority": None}
    for name in _COUNTERS:
        shard[name] = _part([scalars[name] for _, scalars in states], index, count)
    return arrays, shard


def _part(values: Sequence[int], index: int, count: int) -> int:
    """Part number `index` of the sum of counters, in `count` parts as equal as can be."""
    return (sum(values) + count - 1 - index) // count
