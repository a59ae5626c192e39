"""The published 25-to-9 toy on the local runner, five seeds, 420 seconds of one processor each.

True log Z = 0. The published code after the same time: ELBO -0.79, ESS 0.08, W2 2.64. Two exact samples of 2,000 are
some distance apart themselves: the `floor` column, measured in the same evaluation.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import by_seed, finish, median, parse, run_all

CONFIG = Path("configs/experiments/gmm_25_to_9.yaml")
SEEDS = range(5)


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("toy_25_to_9", __doc__ or "")
    runs = run_all(benchmark, by_seed(CONFIG, SEEDS[:1] if benchmark.short else SEEDS))
    figures = {
        "elbo": median(runs, lambda run: run.metrics["eval/elbo"]),
        "ess": median(runs, lambda run: run.metrics["eval/effective_sample_size"]),
        "w2": median(runs, lambda run: run.metrics["eval/w2"]),
        "w2_over_floor": median(runs, lambda run: run.metrics["eval/w2"] / run.metrics["eval/w2_floor"]),
        "w2_floor": median(runs, lambda run: run.metrics["eval/w2_floor"]),
        "w2_max": max(run.metrics["eval/w2"] for run in runs),
        "log_partition_error": median(runs, lambda run: abs(run.metrics["eval/iw_log_partition"])),
        "mode_l1": median(runs, lambda run: run.metrics["eval/class_l1"]),
        "mode_weight_error": max(run.metrics["eval/class_error"] for run in runs),
        "cpu_seconds": max(run.cpu_seconds for run in runs),
        "diverged": float(sum(run.diverged for run in runs)),
    }
    columns = {
        "ELBO": lambda run: run.metrics["eval/elbo"],
        "IW log Z": lambda run: run.metrics["eval/iw_log_partition"],
        "EUBO": lambda run: run.metrics["eval/eubo"],
        "ESS": lambda run: run.metrics["eval/effective_sample_size"],
        "W2": lambda run: run.metrics["eval/w2"],
        "floor": lambda run: run.metrics["eval/w2_floor"],
        "largest error of a mode": lambda run: run.metrics["eval/class_error"],
        "mode L1": lambda run: run.metrics["eval/class_l1"],
        "updates": lambda run: run.last("learner/updates"),
        "CPU s": lambda run: run.cpu_seconds,
    }
    finish(benchmark, "gmm-25-to-9, all seeds", columns, runs, figures)


if __name__ == "__main__":
    main()
