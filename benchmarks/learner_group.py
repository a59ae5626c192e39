"""One learner rank against two over gloo, each on half the batch: seconds of an update, in turns in the same run.

Two ranks once with all weights each, once with half of every weight (`ray.shard_weights`), and with how much of weights
and moments a rank then holds.

Every rank is a process with one thread, as the runner has them; replay and actors are left out. Two ranks need two
idle cores; of all rounds the fastest counts, as what else the machine does only ever adds.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.harness import parse, write_figures
from benchmarks.learner_step import CASES, make_problem, make_trajectory
from diffusion.posterior import FinetunePosterior
from learner import Learner, LearnerConfig
from learner.ranks import ONE_RANK, DistributedRanks, Ranks, held
from learner.sharding import ShardedRanks

UPDATES, ROUNDS, SHORT_ROUNDS = 5, 8, 3


def _work(rank: int, size: int, name: str, shared: bool, folder: str) -> None:
    """Writes the seconds of `UPDATES` updates on this rank's part of the batch."""
    torch.set_num_threads(1)
    ranks: Ranks = ONE_RANK
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        ranks = ShardedRanks() if shared else DistributedRanks()
    case = CASES[name]
    problem = make_problem(case)
    trajectory = make_trajectory(problem, case)
    part = trajectory.take(np.arange(case.batch).reshape(size, -1)[rank])
    torch.manual_seed(0)
    learner = Learner(problem, FinetunePosterior(problem.prior, ()), LearnerConfig(), ranks)
    learner.update(part, 0.0)
    ranks.total(torch.zeros(()))  # all begin together
    began = time.perf_counter()
    for _ in range(UPDATES):
        learner.update(part, 0.0)
    if rank == 0:
        seconds, parameters = (time.perf_counter() - began) / UPDATES, list(learner.posterior.parameters())
        share = sum(held(value).numel() for value in parameters) / sum(value.numel() for value in parameters)
        Path(folder, "found").write_text(json.dumps([seconds, share]), encoding="utf-8")
    if size > 1:
        dist.destroy_process_group()


def measure(size: int, name: str, shared: bool = False) -> tuple[float, float]:
    """Seconds of an update of `size` ranks, and the share of the weights that the first of them holds."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (size, name, shared, folder), nprocs=size)
        seconds, share = json.loads(Path(folder, "found").read_text(encoding="utf-8"))
        return seconds, share


def main() -> None:
    """Runs the benchmark."""
    os.environ["OMP_NUM_THREADS"] = "1"
    benchmark, figures = parse("learner_group", __doc__ or ""), {}
    print("| network | 1 rank, ms | 2 ranks, ms | efficiency | shared out, ms | efficiency | weights held |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in CASES:
        rounds = [
            (measure(1, name), measure(2, name), measure(2, name, shared=True))
            for _ in range(SHORT_ROUNDS if benchmark.short else ROUNDS)
        ]
        one, two, shared = (1e3 * min(seconds for seconds, _ in found) for found in zip(*rounds, strict=True))
        held_share = rounds[0][2][1]
        figures[f"{name}_efficiency"], figures[f"{name}_shared_efficiency"] = one / (2 * two), one / (2 * shared)
        print(
            f"| {name} | {one:.0f} | {two:.0f} | {one / (2 * two):.2f} | {shared:.0f} | {one / (2 * shared):.2f} "
            f"| {held_share:.0%} |"
        )
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
