"""Replay: rate of prioritised draws beside cpprb's, cost of an insert, frequencies, and many processes at once.

Draws of 256 by residual from a full shard, trajectories included, in turn with as many from cpprb's
PrioritizedReplayBuffer that holds the same fields and masses (`pip install cpprb`; without it the ratio is left out).
Inserts of 64 into full shards of 1,000 to 1,000,000 items. The chi-square statistic of 1,000,000 draws over its degrees
of freedom: one where the frequencies are the masses'; stratified draws make it less. Eight writers and two readers in
processes of their own on one shard worker on Ray: items lost, stored twice, or drawn other than they were written.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import parse, write_figures
from diffusion.trajectory import Trajectory
from system.config_file import config_from_tree
from system.replay.config import ReplayConfig
from system.replay.shard import ReplayShard

BATCH, INSERT, STEPS, DIM = 256, 64, 5, 2
FIELDS = ("uid", "states", "log_prior", "log_behaviour_ratio", "log_likelihood", "measurement_id", "policy_version")


def trajectories(first: int, count: int) -> Trajectory:
    """Trajectories number `first` to `first + count`; x tells which."""
    uid = np.arange(first, first + count, dtype=np.uint64)
    generator = np.random.default_rng(first)
    states = generator.standard_normal((count, STEPS + 1, DIM), dtype=np.float32)
    states[:, -1] = mark(uid)[:, None]
    return Trajectory(
        uid=uid,
        states=states,
        log_prior=generator.standard_normal((count, STEPS), dtype=np.float32),
        log_behaviour_ratio=np.zeros(count, dtype=np.float32),
        log_likelihood=generator.standard_normal(count, dtype=np.float32),
        measurement_id=generator.integers(4, size=count),
        policy_version=np.zeros(count, dtype=np.int64),
        origin=np.zeros(count, dtype=np.uint8),
    )


def mark(uid: np.ndarray) -> np.ndarray:
    """[B] a number by which an item that was mixed up with another is told."""
    return ((uid * np.uint64(2654435761)) % np.uint64(2**24)).astype(np.float32)


def full_shard(size: int, **changes: Any) -> ReplayShard:  # noqa: ANN401 - settings of any type
    """A shard of `size` items with residuals of a heavy tail."""
    settings = {"samples_per_insert": None, "min_size": 1, "insert_batch": 64, "priority": "residual"}
    config = ReplayConfig(**(settings | {"newest_share": 0.0, "capacity_bytes": 2**30, "max_items": size} | changes))
    shard = ReplayShard(config, 0, seed=0)
    for first in range(0, size, 10_000):
        shard.insert(trajectories(first, min(10_000, size - first)))
    for _ in range(max(size // 25_000, 1)):
        ids = shard.sample(min(size, 50_000)).ids
        shard.update_priorities(ids, np.random.default_rng(1).gamma(0.5, size=len(ids)) + 1e-3)
    return shard


def rival(shard: ReplayShard) -> Callable[[], object] | None:
    """A draw from cpprb's buffer of the same fields and masses."""
    try:
        from cpprb import PrioritizedReplayBuffer
    except ImportError:
        return None
    size, everything = len(shard), shard.state_dict()[0]
    columns = {name: everything[f"storage.{name}"] for name in (*FIELDS, "origin")}
    fields = {name: {"shape": value.shape[1:] or 1, "dtype": value.dtype} for name, value in columns.items()}
    buffer = PrioritizedReplayBuffer(size, fields, alpha=1.0, eps=0.0)
    priorities = everything["priority.residual.mass"]
    for first in range(0, size, 10_000):
        rows = slice(first, first + 10_000)
        buffer.add(**{name: value[rows] for name, value in columns.items()}, priorities=priorities[rows])
    return lambda: buffer.sample(BATCH, beta=0.4)


def seconds(call: Callable[[], object], times: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def draws(size: int) -> dict[str, float]:
    """Rates at `size` items, in turns."""
    shard = full_shard(size)
    other = rival(shard)
    ours, theirs = [], []
    for _ in range(15):
        ours.append(seconds(lambda: shard.sample(BATCH), 100))
        if other is not None:
            theirs.append(seconds(other, 100))
    figures = {"samples_per_second": BATCH / statistics.median(ours)}
    if theirs:
        ratios = [their / own for own, their in zip(ours, theirs, strict=True)]
        figures |= {
            "cpprb_samples_per_second": BATCH / statistics.median(theirs),
            "ratio_to_cpprb": statistics.median(ratios),
        }
    return figures


def adding(sizes: list[int]) -> dict[str, float]:
    """Microseconds an item, for inserts of 64 into a full shard."""
    figures = {}
    for size in sizes:
        shard = full_shard(size)
        batches = [trajectories(10**8 + INSERT * number, INSERT) for number in range(500)]
        figures[f"add_microseconds_{size}"] = 1e6 / INSERT * seconds(lambda: shard.insert(batches.pop()), 500)  # noqa: B023
    figures["add_cost_largest_over_smallest_size"] = figures[f"add_microseconds_{sizes[-1]}"] / min(figures.values())
    return figures


def frequencies() -> dict[str, float]:
    """Chi-square of a million draws from a mixture, over its degrees of freedom."""
    shares = {"residual": 0.4, "likelihood": 0.3, "rank": 0.3}
    shard = full_shard(10_000, priority=shares, newest_share=0.3, newest_window=1000)
    counts, probability = np.zeros(10_000), np.zeros(10_000)
    for _ in range(1_000_000 // 1000):
        batch = shard.sample(1000)
        counts += np.bincount(batch.ids.slot, minlength=10_000)
        probability[batch.ids.slot] = batch.probability
    expected = probability * counts.sum()
    used = expected > 5
    return {"chi_square_per_degree": float(((counts - expected)[used] ** 2 / expected[used]).sum() / used.sum())}


def main() -> None:
    """Runs the benchmark."""
    from benchmarks.replay_traffic import traffic

    benchmark = parse("replay", __doc__ or "")
    print(f"\nreplay\n{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}\n")
    sizes = [10**3, 10**4, 10**5, 10**6]
    figures = draws(10**6) | adding(sizes[:3] if benchmark.short else sizes) | frequencies()
    config = config_from_tree({"runner": "ray", "replay": {"capacity_bytes": 2**30, "samples_per_insert": None}}, "")
    figures |= traffic(config, 10.0 if benchmark.short else 60.0)
    for name, value in figures.items():
        print(f"{name:50} {value:,.4g}")
    if "ratio_to_cpprb" not in figures:
        print("ratio_to_cpprb is left out: cpprb is not installed (pip install cpprb)")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
