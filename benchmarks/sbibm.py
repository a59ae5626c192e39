"""Five tasks of the benchmark of simulation-based inference, judged by its published draws of ten posteriors each.

One network a task, trained on simulated observations alone (`configs/experiments/sbibm_amortised.yaml`), is judged at
all ten published ones twice: by its samples as drawn, and by as many that are corrected (`actors.resample_move`). The
judge is the benchmark's own (Lueckmann et al. 2021, arXiv 2101.04653): whether a classifier can tell 10,000 samples
from the 10,000 published draws (C2ST, 0.5 to 1). `halves` is the same between two halves of these draws.

The budget is processor time of one core: training for `SECONDS`, then drawing at ten observations; the judge's own time
is not counted.
"""

from __future__ import annotations

import bz2
import io
import math
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.resample_move import moved, resampled
from actors.rollout import Rollout, rollout
from benchmarks.harness import collect, parse, write_figures
from diffusion.posterior import Posterior
from envs import InverseProblem, make_problem
from envs.data import data_file
from envs.problems.sbibm import SOURCE
from evaluation.bounds import effective_sample_size, iw_log_partition
from evaluation.two_sample import classifier_two_sample
from system.assembly import build_problem
from system.config_file import load_config
from system.judge import load_posterior
from system.local import LocalRunner

CONFIG = Path("configs/experiments/sbibm_amortised.yaml")
TASKS = ("gaussian-linear", "gaussian-linear-uniform", "gaussian-mixture", "slcp", "bernoulli-glm")
OBSERVATIONS, SHORT_OBSERVATIONS = range(1, 11), range(1, 3)
SECONDS, SHORT_SECONDS = 120.0, 30.0
COUNT, SHORT_COUNT = 10_000, 1_000
BATCH = 2_500  # paths at once
SWEEPS = 8
ASKED = 0.60  # of C2ST, mean over the observations


def published_draws(task: str, observation: int) -> Tensor:
    """[10,000, D] reference draws of the posterior of a published observation."""
    folder = f"num_observation_{observation}"
    path = data_file(
        "sbibm_reference", task.replace("-", "_"), folder, "reference_posterior_samples.csv.bz2", source=SOURCE
    )
    text = bz2.decompress(path.read_bytes()).decode()
    return torch.from_numpy(np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1))


def trained(task: str, seconds: float, seed: int = 0) -> Posterior:
    """The amortised posterior of a task after `seconds` of processor time."""
    flags = ["--problem.name", f"sbibm-{task}", "--runner", "local", "--clock", "cpu"]
    config = load_config(CONFIG, [*flags, "--max-seconds", str(seconds), "--seed", str(seed)])
    problem = build_problem(config)
    runner = LocalRunner(config, problem)
    while not runner.finished:
        runner.advance()
    return load_posterior(config, problem, runner.weights())


def drawn(problem: InverseProblem, posterior: Posterior, count: int, generator: torch.Generator) -> list[Rollout]:
    """`count` paths of the posterior at the problem's measurement, in parts."""
    draw = partial(rollout, problem, posterior.control, generator=generator, guided=posterior.uses_guidance)
    return [draw(rows) for rows in torch.zeros(count, dtype=torch.int64).split(BATCH)]


def judged(task: str, observations: tuple[int, ...], seconds: float, count: int, sweeps: int) -> dict[str, Any]:
    """One task: a row of numbers for each observation, and the processor time of training."""
    before = time.process_time()
    posterior = trained(task, seconds)
    result: dict[str, Any] = {"training": time.process_time() - before}
    for observation in observations:
        problem = make_problem(f"sbibm-{task}", {"observation": observation})
        generator, before = torch.Generator().manual_seed(observation), time.process_time()
        parts = drawn(problem, posterior, count, generator)
        middle = time.process_time()
        taken = resampled(parts, count, generator)
        assert taken is not None
        right, accepted = moved(problem, posterior, taken[0], generator, sweeps=sweeps)
        after = time.process_time()
        log_weight = torch.cat([part.log_weight for part in parts])
        samples, reference = torch.cat([part.states[:, -1] for part in parts]), published_draws(task, observation)
        row = {
            "c2st_drawn": classifier_two_sample(reference[:count], samples),
            "c2st_corrected": classifier_two_sample(reference[:count], right),
            "ess": effective_sample_size(log_weight),
            "iw_log_partition": iw_log_partition(log_weight),
            "exact_log_partition": problem.exact[0].log_partition if problem.exact else math.nan,
            "accepted": accepted,
            "seconds_drawn": middle - before,
            "seconds_corrected": after - middle,
        }
        result[str(observation)] = row
    reference = published_draws(task, observations[0])
    reference = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))]
    half = min(count, len(reference) // 2)
    result["halves"] = classifier_two_sample(reference[:half], reference[half : 2 * half])
    return result


def rows_of(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """The rows of a task by observation."""
    return [dict(result[key]) for key in result if key.isdigit()]


def figures_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means over observations of each task, and how many tasks reach what is asked."""
    figures: dict[str, float] = {}
    for task, result in results.items():
        rows, name = rows_of(result), task.replace("-", "_")
        for key in ("c2st_drawn", "c2st_corrected", "ess"):
            figures[f"{name}_{key}"] = statistics.fmean(row[key] for row in rows)
        for kind in ("drawn", "corrected"):
            figures[f"{name}_c2st_{kind}_max"] = max(row[f"c2st_{kind}"] for row in rows)
        seconds = sum(row["seconds_drawn"] + row["seconds_corrected"] for row in rows)
        figures[f"{name}_cpu_seconds"] = result["training"] + seconds
    for kind in ("drawn", "corrected"):
        reached = [figures[f"{task.replace('-', '_')}_c2st_{kind}"] <= ASKED for task in results]
        figures[f"tasks_ok_{kind}"] = float(sum(reached))
    return figures | {"tasks": float(len(results))}


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("sbibm", __doc__ or "")
    observations = tuple(SHORT_OBSERVATIONS if benchmark.short else OBSERVATIONS)
    seconds, count = (SHORT_SECONDS, SHORT_COUNT) if benchmark.short else (SECONDS, COUNT)
    calls = {task: (judged, task, observations, seconds, count, SWEEPS) for task in TASKS}
    results = collect(benchmark, calls)
    print(f"\nC2ST of {count} samples against the published draws, by observation\n")
    numbers = " | ".join(str(observation) for observation in observations)
    print(f"| task | samples | {numbers} | mean | halves |")
    print("|---|---|" + "---:|" * (len(observations) + 2))
    for task, result in results.items():
        for kind in ("drawn", "corrected"):
            each = [row[f"c2st_{kind}"] for row in rows_of(result)]
            listed = " | ".join(f"{value:.3f}" for value in each)
            print(f"| {task} | {kind} | {listed} | {statistics.fmean(each):.3f} | {result['halves']:.3f} |")
    print("\n| task | training, CPU s | drawing ten, CPU s | correcting ten, CPU s | ESS, mean | accepted, mean |")
    print("|---|---:|---:|---:|---:|---:|")
    for task, result in results.items():
        rows = rows_of(result)
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        print(
            f"| {task} | {result['training']:.0f} | {total['seconds_drawn']:.0f} | {total['seconds_corrected']:.0f} "
            f"| {total['ess'] / len(rows):.3f} | {total['accepted'] / len(rows):.3f} |"
        )
    print()
    figures = figures_of(results)
    for name, value in figures.items():
        print(f"{name:45} {value:.4f}")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
