"""The main job on both runners: three held-out digits, five seeds, four minutes of training each.

Every run is judged against the exact posterior of its digit; no run is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Finished, Planned, finish, median, parse, run_all
from system.metrics import read_metrics
from system.run_directory import RunDirectory

CONFIG = Path("configs/experiments/digits_half.yaml")
DIGITS, SEEDS = (20, 100, 200), range(5)


def gap(run: Finished) -> float:
    """Exact log Z - ELBO, nats."""
    return run.metrics["eval/exact_log_partition"] - run.metrics["eval/elbo"]


def error(run: Finished) -> float:
    """|IW-4096 - exact log Z|, nats."""
    return abs(run.metrics["eval/iw_log_partition"] - run.metrics["eval/exact_log_partition"])


def wait(history: Mapping[str, Any]) -> float:
    """Share of its time that the learner waited for data, after the first 20 s in which actors and replay start."""
    _, seconds, share = history["learner/wait"]
    start = int((seconds < 20).sum())
    return float((share[-1] * seconds[-1] - share[start] * seconds[start]) / (seconds[-1] - seconds[start]))


def _planned(runner: str, digit: int, seed: int) -> Planned:
    overrides = ("--runner", runner, "--problem.digit", str(digit), "--seed", str(seed))
    return Planned(name=f"{runner}-digit{digit}-seed{seed}", config=CONFIG, overrides=overrides)


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("digits_half", __doc__ or "")
    plan = [
        (runner, digit, seed)
        for runner in ("local", "ray")
        for digit in (DIGITS[:1] if benchmark.short else DIGITS)
        for seed in (SEEDS[:1] if benchmark.short else SEEDS)
    ]
    made = run_all(benchmark, [_planned(*key) for key in plan])
    runs = dict(zip(plan, made, strict=True))
    figures: dict[str, float] = {}
    for runner in ("local", "ray"):
        part = [run for key, run in runs.items() if key[0] == runner]
        figures |= {
            f"log_partition_error_{runner}": median(part, error),
            f"elbo_gap_{runner}": median(part, gap),
            f"elbo_gap_max_{runner}": max(map(gap, part)),
            f"class_l1_{runner}": median(part, lambda run: run.metrics["eval/class_l1"]),
            f"class_l1_max_{runner}": max(run.metrics["eval/class_l1"] for run in part),
            f"diverged_{runner}": float(sum(run.diverged for run in part)),
        }
    for name in ("log_partition_error", "elbo_gap", "class_l1"):
        figures[name] = max(figures[f"{name}_local"], figures[f"{name}_ray"])  # the worse runner speaks for both
    figures["diverged"] = figures["diverged_local"] + figures["diverged_ray"]
    ray = [run for key, run in runs.items() if key[0] == "ray"]
    waits = {run.name: wait(read_metrics(RunDirectory.open(benchmark.out / run.name).metrics)) for run in ray}
    figures["learner_wait"] = statistics.median(waits.values())
    figures["samples_per_insert_error"] = max(abs(run.last("replay/samples_per_insert_error")) for run in runs.values())
    columns = {
        "exact log Z": lambda run: run.metrics["eval/exact_log_partition"],
        "IW error": error,
        "ELBO gap": gap,
        "EUBO - ELBO": lambda run: run.metrics["eval/gap"],
        "ESS": lambda run: run.metrics["eval/effective_sample_size"],
        "class L1": lambda run: run.metrics["eval/class_l1"],
        "updates": lambda run: run.last("learner/updates"),
        "seconds": lambda run: run.last("system/seconds"),
        "learner wait": lambda run: waits.get(run.name, math.nan),
    }
    finish(benchmark, "digits-half, all runs", columns, list(runs.values()), figures)


if __name__ == "__main__":
    main()
