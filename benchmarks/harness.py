"""What every benchmark shares: its flags, resumable runs, a table, and the figures as JSON.

A full benchmark is a list of training runs. Each leaves its run directory under `--out`; a benchmark that is started
again skips those that are complete and goes on with the interrupted one's place in the list.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from system.config import load_config
from system.errors import DivergedError
from system.judge import has_diverged
from system.metrics import read_metrics
from system.run import train
from system.run_directory import RunDirectory

__all__ = ["Benchmark", "Finished", "finish", "median", "parse", "run_once"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The flags of a benchmark."""

    short: bool
    """The smallest honest form, at most ten minutes: one seed."""
    json: Path | None
    """Where the figures go as JSON."""
    out: Path
    """Where the run directories go."""


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
    known = parser.parse_args(arguments)
    suffix = "-short" if known.short else ""
    out = known.out or Path("runs/benchmarks") / f"{name}{suffix}"
    torch.set_num_threads(1)
    return Benchmark(short=known.short, json=known.json, out=out)


def run_once(benchmark: Benchmark, name: str, config: Path, overrides: Sequence[str]) -> Finished:
    """Trains `config` with `overrides` unless that has been done already."""
    directory, mark = benchmark.out / name, benchmark.out / f"{name}.json"
    if not mark.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        before, ended = time.process_time(), ""
        try:
            train(load_config(config, list(overrides)), directory, quiet=True)
        except DivergedError as error:
            ended = str(error)
        mark.write_text(json.dumps({"cpu_seconds": time.process_time() - before, "ended": ended}))
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
