"""Eight writers and two readers on one shard worker, each in a process of its own.

Writers number their items, and send every tenth batch twice, as a writer does whose answer was lost. Readers see
whether an item is what its number says, and report residuals. In the end the shard must hold every number once.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import ray

from system.config import RunConfig
from system.distributed.workers import ShardWorker

__all__ = ["traffic"]

BATCH = 64
RESENT = 10


def write(shard: Any, number: int, seconds: float) -> tuple[int, int]:  # noqa: ANN401 - a Ray handle
    """Items made, and how many of these were sent twice, by writer `number`."""
    from benchmarks.replay import trajectories

    made = twice = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        batch = trajectories((number << 40) + made, BATCH)
        for repetition in range(2 if made // BATCH % RESENT == 0 else 1):
            twice += BATCH * repetition
            while not ray.get(shard.insert.remote(batch)).accepted:
                time.sleep(0.01)
        made += BATCH
    return made, twice


def read(shard: Any, seconds: float) -> tuple[int, int]:  # noqa: ANN401
    """Items drawn, and how many of these were not what their number says."""
    from benchmarks.replay import mark

    drawn = wrong = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        batch = ray.get(shard.sample.remote(4 * BATCH))
        if batch is None:
            time.sleep(0.01)
            continue
        wrong += int(np.count_nonzero(batch.trajectory.samples[:, 0] != mark(batch.trajectory.uid)))
        drawn += len(batch.ids)
        shard.update_priorities.remote(batch.ids, np.abs(batch.trajectory.log_likelihood))
    return drawn, wrong


def traffic(config: RunConfig, seconds: float, writers: int = 8, readers: int = 2) -> dict[str, float]:
    """Figures of `seconds` of it; `config` must leave room for all that is written."""
    replay = dataclasses.replace(config.replay, priority="residual", insert_batch=BATCH, sample_batch=4 * BATCH)
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=writers + readers, include_dashboard=False, log_to_driver=False)
    try:
        shard = ray.remote(ShardWorker).options(num_cpus=0).remote(dataclasses.replace(config, replay=replay), 0)
        ray.get(shard.ready.remote())
        writing = [ray.remote(write).remote(shard, number, seconds) for number in range(writers)]
        reading = [ray.remote(read).remote(shard, seconds) for _ in range(readers)]
        made, twice = np.sum(ray.get(writing), axis=0)
        drawn, wrong = np.sum(ray.get(reading), axis=0)
        uids = ray.get(shard.__ray_call__.remote(lambda worker: worker._shard.state_dict()[0]["storage.uid"]))
        stats = ray.get(shard.stats.remote())
        ray.kill(shard)
    finally:
        if started:
            ray.shutdown()
    assert stats["evictions"] == 0, "the shard is too small to tell what was lost"
    return {
        "traffic_inserts_per_second": made / seconds,
        "traffic_samples_per_second": drawn / seconds,
        "traffic_lost": float(made - len(np.unique(uids))),
        "traffic_stored_twice": float(len(uids) - len(np.unique(uids))),
        "traffic_resent_and_not_told": float(twice - stats["duplicates"]),
        "traffic_mixed_up": float(wrong),
        "traffic_late_priorities": stats["late_priorities"],
    }
