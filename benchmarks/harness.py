"""What every benchmark shares: its flags, resumable runs, a table, and the figures as JSON.

A full benchmark is a list of training runs, `--jobs` at a time in processes of their own. Each leaves its run directory
under `--out`; a benchmark that is started again skips those that are complete.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from system.config_file import load_config
from system.errors import DivergedError
from system.judge import has_diverged
from system.metrics import read_metrics
from system.run import train
from system.run_directory import RunDirectory

__all__ = [
    "Benchmark",
    "Finished",
    "Planned",
    "by_seed",
    "elbo_gap",
    "finish",
    "finished",
    "limited",
    "median",
    "parse",
    "run_all",
    "seed_by_seed",
    "shortened",
]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The flags of a benchmark."""

    short: bool
    """The smallest honest form, at most ten minutes: one seed."""
    json: Path | None
    """Where the figures go as JSON."""
    out: Path
    """Where the run directories go."""
    jobs: int
    """Training runs at a time."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A training run to be made."""

    name: str
    """Name of its directory and in the table."""
    config: Path
    """Configuration."""
    overrides: tuple[str, ...]
    """Flags of the command line that change it."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A complete training run."""

    name: str
    """Name in the table."""
    metrics: Mapping[str, float]
    """Of the last evaluation."""
    history: Mapping[str, Any]
    """All metrics, as `read_metrics` gives them."""
    cpu_seconds: float
    """Processor time of the whole run, all processes of the local runner; nan where not measured."""
    diverged: bool
    """See `system.judge.has_diverged`; a run that the guard ended is one."""

    def last(self, key: str) -> float:
        """The newest value of a training metric, nan if it was never logged."""
        return float(self.history[key][2][-1]) if key in self.history else float("nan")


def parse(name: str, description: str, arguments: Sequence[str] | None = None) -> Benchmark:
    """The flags of the benchmark called `name`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--short", action="store_true", help="one seed, at most ten minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--out", type=Path, help=f"run directories (default runs/benchmarks/{name})")
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time (default 1)")
    known = parser.parse_args(arguments)
    suffix = "-short" if known.short else ""
    out = known.out or Path("runs/benchmarks") / f"{name}{suffix}"
    torch.set_num_threads(1)
    return Benchmark(short=known.short, json=known.json, out=out, jobs=known.jobs)


def run_all(benchmark: Benchmark, plan: Sequence[Planned]) -> list[Finished]:
    """Makes the runs of `plan` that have not been made yet; all of them, in its order."""
    missing = [run for run in plan if not _mark(benchmark, run.name).exists()]
    if benchmark.jobs == 1 or len(missing) < 2:
        for run in missing:
            _train(benchmark, run)
    else:
        with ProcessPoolExecutor(benchmark.jobs, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(_train, benchmark, run) for run in missing]:
                done.result()
    return [finished(benchmark, run.name) for run in plan]


def by_seed(config: Path, seeds: Sequence[int], name: str = "seed", overrides: Sequence[str] = ()) -> list[Planned]:
    """Runs of `config` that differ by their seed, called `name` and its number: local, their budget processor time."""
    local = ("--runner", "local", "--clock", "cpu")
    return [
        Planned(name=f"{name}{seed}", config=config, overrides=(*local, "--seed", str(seed), *overrides))
        for seed in seeds
    ]


def limited(seconds: float) -> dict[str, Any]:
    """What a tree needs for a run of `seconds` of processor time on the local runner, judged at its end alone."""
    budget = {"runner": "local", "clock": "cpu", "max_seconds": seconds, "updates": 100_000}
    return budget | {"evaluation": {"interval_seconds": 1e6}}


def shortened(config: Path, options: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The tree of a configuration file, `limited`, with `options` of the problem beside the file's."""
    tree: dict[str, Any] = yaml.safe_load(config.read_text())
    tree["problem"] |= options
    return tree | limited(seconds)


def seed_by_seed(
    benchmark: Benchmark, trees: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, Sequence[int]]
) -> list[Planned]:
    """Runs of the configurations `trees`, which are written beside them, for the `seeds` of each; one if short.

    Seed by seed, so that a part of the runs is a part of every row of a table.
    """
    plan = {}
    for name, tree in trees.items():
        path = benchmark.out / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(tree)))
        for seed in seeds[name][:1] if benchmark.short else seeds[name]:
            run = Planned(name=f"{name}-seed{seed}", config=path, overrides=("--seed", str(seed)))
            plan.setdefault(seed, []).append(run)
    return [run for seed in sorted(plan) for run in plan[seed]]


def elbo_gap(run: Finished) -> float:
    """Exact log Z - ELBO; where log Z is not known, IW - ELBO; nats. Infinite for a run that diverged."""
    if run.diverged:
        return math.inf
    best = run.metrics["eval/exact_log_partition"]
    return (run.metrics["eval/iw_log_partition"] if math.isnan(best) else best) - run.metrics["eval/elbo"]


def _mark(benchmark: Benchmark, name: str) -> Path:
    return benchmark.out / f"{name}.json"


def _train(benchmark: Benchmark, run: Planned) -> None:
    torch.set_num_threads(1)
    directory = benchmark.out / run.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')} {run.name}", file=sys.stderr, flush=True)
    before, ended = time.process_time(), ""
    try:
        train(load_config(run.config, list(run.overrides)), directory, quiet=True)
    except DivergedError as error:
        ended = str(error)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # with their replay a hundred runs would fill a disk
    _mark(benchmark, run.name).write_text(json.dumps({"cpu_seconds": time.process_time() - before, "ended": ended}))


def finished(benchmark: Benchmark, name: str) -> Finished:
    """The complete run `name`."""
    directory, mark = benchmark.out / name, _mark(benchmark, name)
    run, marked = RunDirectory.open(directory), json.loads(mark.read_text())
    metrics = {} if marked["ended"] else json.loads(run.results.read_text())["metrics"]
    return Finished(
        name=name,
        metrics=defaultdict(lambda: float("nan"), metrics),
        history=read_metrics(run.metrics),
        cpu_seconds=float(marked["cpu_seconds"]),
        diverged=bool(marked["ended"]) or has_diverged(metrics),
    )


def median(runs: Sequence[Finished], value: Callable[[Finished], float]) -> float:
    """Median over the runs."""
    return statistics.median(value(run) for run in runs)


def finish(
    benchmark: Benchmark,
    title: str,
    columns: Mapping[str, Callable[[Finished], float]],
    runs: Sequence[Finished],
    figures: Mapping[str, float],
) -> None:
    """Prints a table with a row per run, then the figures, and writes them as JSON."""
    print(
        f"\n{title}\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n"
    )
    print("| run | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for run in runs:
        print(f"| {run.name} | " + " | ".join(f"{value(run):.3f}" for value in columns.values()) + " |")
    print()
    for name, value in figures.items():
        print(f"{name:40} {value:.4f}")
    if benchmark.json is not None:
        benchmark.json.write_text(json.dumps({"figures": dict(figures)}, indent=1) + "\n")
