"""What every benchmark shares: its flags, resumable runs, a table, and the figures as JSON.

A full benchmark is a list of training runs, `--jobs` at a time in processes of their own. Each leaves its run directory
under `--out` and what the tables need of it in `results.json` there; a benchmark that is started again skips the runs
that this file has. So a copy of the file is enough to go on elsewhere.
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
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from system.run_directory import RunDirectory, write_text

__all__ = [
    "Benchmark",
    "Finished",
    "Planned",
    "by_seed",
    "collect",
    "elbo_gap",
    "finish",
    "limited",
    "median",
    "parse",
    "run_all",
    "seed_by_seed",
    "shortened",
    "write_figures",
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
    training: Mapping[str, float]
    """Newest values of what was logged while it trained."""
    cpu_seconds: float
    """Processor time of the whole run, all processes of the local runner; nan where not measured."""
    diverged: bool
    """See `system.judge.has_diverged`; a run that the guard ended is one."""
    memory: float = math.nan
    """Largest resident memory of the process while it made the run, bytes; nan where not measured."""

    def last(self, key: str) -> float:
        """The newest value of a training metric, nan if it was never logged."""
        return self.training.get(key, math.nan)


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
    results = collect(benchmark, {run.name: (_train, run, benchmark.out / run.name) for run in plan})
    return [_finished(run.name, results[run.name]) for run in plan]


def collect(benchmark: Benchmark, calls: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """What each of `calls`, a function and its arguments, returned, now or when the benchmark was last started.

    The functions are called in other processes, so they and their arguments must pickle; a result must be JSON.
    """
    path = benchmark.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(benchmark.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_call, name, *call): name for name, call in calls.items() if name not in results}
        for done in as_completed(waiting):
            results[waiting[done]] = done.result()
            write_text(path, json.dumps(results, indent=1) + "\n")
    return {name: results[name] for name in calls}


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - whatever it returns
    torch.set_num_threads(1)
    print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
    return function(*arguments)


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
    """The tree of a configuration file, `limited`, with `options` of the problem beside the file's.

    The numbers of paths of its evaluations stay.
    """
    tree: dict[str, Any] = yaml.safe_load(config.read_text())
    tree["problem"] |= options
    limits = limited(seconds)
    limits["evaluation"] = tree.get("evaluation", {}) | limits["evaluation"]
    return tree | limits


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


def _train(run: Planned, directory: Path) -> dict[str, Any]:
    """Makes the run; what `_finished` reads."""
    shutil.rmtree(directory, ignore_errors=True)
    reset_peak_bytes()
    before, metrics, ended = time.process_time(), {}, ""
    try:
        made = train(load_config(run.config, list(run.overrides)), directory, quiet=True)
        metrics = json.loads(made.results.read_text())["metrics"]
    except DivergedError as error:
        ended = str(error)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # with their replay a hundred runs would fill a disk
    # A run that ended before its first row of metrics leaves no directory.
    history = read_metrics(RunDirectory.open(directory).metrics) if directory.exists() else {}
    training = {key: float(values[-1]) for key, (_, _, values) in history.items() if not key.startswith("eval/")}
    cpu_seconds = time.process_time() - before
    result = {"cpu_seconds": cpu_seconds, "ended": ended, "metrics": metrics, "training": training}
    return result | {"memory": float(peak_bytes())}


def _finished(name: str, result: Mapping[str, Any]) -> Finished:
    return Finished(
        name=name,
        metrics=defaultdict(lambda: math.nan, result["metrics"]),
        training=result["training"],
        cpu_seconds=float(result["cpu_seconds"]),
        diverged=bool(result["ended"]) or has_diverged(result["metrics"]),
        memory=float(result.get("memory", math.nan)),
    )


def peak_bytes() -> int:
    """Largest resident memory of this process so far, or since `reset_peak_bytes`; of Linux."""
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had before this one began
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def reset_peak_bytes() -> None:
    """Forgets the peak up to now."""
    Path("/proc/self/clear_refs").write_text("5")


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
    write_figures(benchmark.json, figures)


def write_figures(path: Path | None, figures: Mapping[str, float]) -> None:
    """Writes the figures as JSON, where asked for."""
    if path is not None:
        path.write_text(json.dumps({"figures": dict(figures)}, indent=1) + "\n")
