"""One learner rank against two over gloo, each on half the batch: seconds of an update, in turns in the same run.

Every rank is a process with one thread, as the runner has them; replay and actors are left out. Two ranks need two
idle cores; of all rounds the fastest counts, as what else the machine does only ever adds.
"""

from __future__ import annotations

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
from learner.ranks import ONE_RANK, DistributedRanks

UPDATES, ROUNDS, SHORT_ROUNDS = 5, 8, 3


def _work(rank: int, size: int, name: str, folder: str) -> None:
    """Writes the seconds of `UPDATES` updates on this rank's part of the batch."""
    torch.set_num_threads(1)
    ranks = ONE_RANK
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        ranks = DistributedRanks()
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
        Path(folder, "seconds").write_text(str((time.perf_counter() - began) / UPDATES), encoding="utf-8")
    if size > 1:
        dist.destroy_process_group()


def seconds_of(size: int, name: str) -> float:
    """Seconds of an update of `size` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (size, name, folder), nprocs=size)
        return float(Path(folder, "seconds").read_text(encoding="utf-8"))


def main() -> None:
    """Runs the benchmark."""
    os.environ["OMP_NUM_THREADS"] = "1"
    benchmark, figures = parse("learner_group", __doc__ or ""), {}
    print("| network | 1 rank, ms | 2 ranks, ms | efficiency |\n|---|---:|---:|---:|")
    for name in CASES:
        pairs = [(seconds_of(1, name), seconds_of(2, name)) for _ in range(SHORT_ROUNDS if benchmark.short else ROUNDS)]
        one, two = (1e3 * min(times) for times in zip(*pairs, strict=True))
        efficiency = one / (2 * two)
        print(f"| {name} | {one:.0f} | {two:.0f} | {efficiency:.2f} |")
        figures[f"{name}_efficiency"] = efficiency
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
