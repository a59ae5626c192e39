"""Quality against lag: the actor's weights are 0, 4, 16 or 64 updates behind the learner's, on two problems.

Every trajectory is drawn once on average, from the newest, so nothing but the lag makes the data old. All runs have the
same number of updates; the local runner hands the actor old weights on purpose.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections import deque
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import collect, parse, write_figures
from envs import InverseProblem
from system.assembly import build_problem
from system.config import RunConfig
from system.config_file import load_config
from system.judge import judge
from system.local import LocalRunner

CONFIG = Path("configs/experiments/gmm_linear.yaml")
PROBLEMS = {"gmm-linear": ("--problem.dim", "16"), "gmm-25-to-9": ("--problem.num-steps", "50")}
LAGS, SEEDS = (0, 4, 16, 64), range(3)
UPDATES = 1_500
ONCE = ("--replay.newest-share", "1", "--replay.newest-window", "64", "--replay.samples-per-insert", "1")


class LaggingRunner(LocalRunner):
    """A local runner whose actor has weights of at least `lag` updates ago, or the first ones."""

    def __init__(self, config: RunConfig, problem: InverseProblem, lag: int) -> None:
        super().__init__(config, problem)
        self._lag = lag
        self._past: deque[tuple[NDArray[np.float32], int]] = deque()

    def weights_for_actor(self) -> tuple[NDArray[np.float32], int]:
        """See `LocalRunner.weights_for_actor`."""
        self._past.append(super().weights_for_actor())
        while len(self._past) > 1 and self._past[1][1] <= self.learner.updates - self._lag:
            self._past.popleft()
        return self._past[0]


def measure(problem_name: str, lag: int, seed: int) -> dict[str, float]:
    """Metrics of one run."""
    choice = ("--problem.name", problem_name) if problem_name != "gmm-linear" else ()
    flags = (*choice, *PROBLEMS[problem_name], "--seed", str(seed), "--updates", str(UPDATES), *ONCE)
    config = load_config(CONFIG, list(flags))
    problem = build_problem(config)
    runner = LaggingRunner(config, problem, lag)
    realised: list[float] = []
    while not runner.finished:
        realised.append(runner.advance()["learner/lag_median"])
    evaluation = judge(config, problem, runner.weights(), quick=False).evaluation
    return evaluation.as_metrics() | {"lag": statistics.median(realised)}


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("staleness", __doc__ or "")
    seeds = SEEDS[:1] if benchmark.short else SEEDS
    rows = [(name, lag, seed) for seed in seeds for name in PROBLEMS for lag in LAGS]
    results = collect(
        benchmark, {f"{name}-lag{lag}-seed{seed}": (measure, name, lag, seed) for name, lag, seed in rows}
    )
    print(f"\nstaleness\n{platform.machine()}, {os.cpu_count()} cores\n")
    print("| problem | lag | realised | ELBO gap, each seed | IW error | ESS | class L1 |")
    print("|---|---:|---:|---|---:|---:|---:|")
    figures: dict[str, float] = {}
    for name in PROBLEMS:
        for lag in LAGS:
            runs = [results[f"{name}-lag{lag}-seed{seed}"] for seed in seeds]
            gaps = [run["eval/exact_log_partition"] - run["eval/elbo"] for run in runs]
            errors = [abs(run["eval/iw_log_partition"] - run["eval/exact_log_partition"]) for run in runs]
            row = {
                "elbo_gap": statistics.median(gaps),
                "log_partition_error": statistics.median(errors),
                "ess": statistics.median(run["eval/effective_sample_size"] for run in runs),
                "class_l1": statistics.median(run["eval/class_l1"] for run in runs),
            }
            figures |= {f"{name.replace('-', '_')}_lag{lag}_{key}": value for key, value in row.items()}
            print(
                f"| {name} | {lag} | {statistics.median(run['lag'] for run in runs):.0f} "
                f"| {', '.join(f'{gap:.2f}' for gap in gaps)} | {row['log_partition_error']:.3f} "
                f"| {row['ess']:.3f} | {row['class_l1']:.3f} |"
            )
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
