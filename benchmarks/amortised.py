"""One network for the left half of any digit, judged at all 297 held-out ones and over simulated pairs.

Forty minutes of processor time a seed, all of it on simulated measurements; no held-out digit is seen in training. The
run's own last evaluation gives the figures: 64 paths of each measurement, and the coverage over 2,000 pairs. Sampling
is timed apart, on one core, with nothing else running: 64 samples at a measurement that the process has not seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Finished, by_seed, finish, median, parse, run_all
from system.assembly import build_posterior, build_problem
from system.config_file import load_config
from system.judge import draw

CONFIG = Path("configs/experiments/digits_half_amortised.yaml")
SEEDS = range(3)
SHORT = ("--max-seconds", "240", "--evaluation.calibration-pairs", "500")
TIMED, REPEATS = 64, 5


def sampling_seconds(count: int = TIMED, repeats: int = REPEATS) -> float:
    """Least time of `repeats` to draw `count` samples at a new measurement; it does not depend on the weights."""
    config = load_config(CONFIG)
    problem = build_problem(config)
    posterior = build_posterior(config, problem).requires_grad_(False)
    generator, seconds = torch.Generator().manual_seed(0), math.inf
    for repeat in range(repeats + 1):  # the first warms up
        measurement = problem.simulate(torch.randn(1, *problem.event_shape, generator=generator), generator)
        start = time.perf_counter()
        draw(problem.at(measurement), posterior, count, seed=repeat)
        seconds = min(seconds, time.perf_counter() - start) if repeat else math.inf
    return seconds


def metric(key: str) -> Callable[[Finished], float]:
    """The metric `key` of the last evaluation."""
    return lambda run: run.metrics[key]


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("amortised", __doc__ or "")
    seeds = SEEDS[:1] if benchmark.short else SEEDS
    made = run_all(benchmark, by_seed(CONFIG, seeds, overrides=SHORT if benchmark.short else ()))
    keys = {
        "log_partition_error": "eval/each/log_partition_error",
        "elbo_gap": "eval/each/elbo_gap",
        "class_l1": "eval/each/class_l1",
        "tarp_deviation": "eval/calibration_deviation",
        "ess": "eval/each/ess",
        "class_l1_floor": "eval/each/class_l1_floor",
    }

    columns = {name: metric(key) for name, key in keys.items()}
    columns |= {"updates": lambda run: run.last("learner/updates"), "CPU s": lambda run: run.cpu_seconds}
    figures = {name: median(made, metric(key)) for name, key in keys.items()}
    figures |= {f"{name}_max": max(run.metrics[key] for run in made) for name, key in list(keys.items())[:4]}
    figures["diverged"] = float(sum(run.diverged for run in made))
    figures["seconds_of_64_samples"] = sampling_seconds()
    finish(benchmark, "digits-half, amortised, all runs", columns, made, figures)


if __name__ == "__main__":
    main()
