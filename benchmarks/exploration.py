"""What each kind of exploration brings to a run and what it costs: two problems, three seeds, 60 CPU-seconds each.

Every run is a shipped configuration in which half of the actors' batches are of one kind at the start, none at the end,
and all others on-policy; the first row is on-policy alone. Kinds that a problem does not admit have no row.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Finished, Planned, elbo_gap, finish, parse, run_all, seed_by_seed, shortened

CONFIGS = Path("configs/experiments")
SEEDS = range(3)
SECONDS, SHORT_SECONDS = 60.0, 10.0
ANY = ("on-policy", "noise-inflated", "prior", "path-search", "backtracking", "langevin", "teacher")
LINEAR_GAUSSIAN = ("dps", "dps-cla", "pigdm", "joint", "annealed-measurement")


@dataclass(frozen=True)
class Case:
    """A problem of the table."""

    config: str
    """File under configs/experiments."""
    options: Mapping[str, Any]
    """Of the problem, beside those of the file."""
    kinds: tuple[str, ...]
    """Kinds that it admits."""


CASES = {
    "digits-half-hard": Case("digits_half", {"noise_std": 0.05}, ANY + LINEAR_GAUSSIAN),
    "manywell": Case("manywell", {}, ANY),
}


def configured(case: Case, kind: str, seconds: float) -> dict[str, Any]:
    """The tree of a configuration file."""
    tree = shortened(CONFIGS / f"{case.config}.yaml", case.options, seconds)
    mixture = {kind: 0.5, "on-policy": 0.5} if kind != "on-policy" else {kind: 1.0}
    tree["actor"] |= {"mixture": mixture, "final_mixture": {"on-policy": 1.0}}
    return tree


def planned(benchmark: Benchmark) -> list[Planned]:
    """All runs."""
    seconds = SHORT_SECONDS if benchmark.short else SECONDS
    trees = {f"{name}-{kind}": configured(case, kind, seconds) for name, case in CASES.items() for kind in case.kinds}
    return seed_by_seed(benchmark, trees, dict.fromkeys(trees, SEEDS))


def row(kind: str, runs: Sequence[Finished]) -> dict[str, float]:
    """Figures of one line of a table, which is printed."""
    gaps = [elbo_gap(run) for run in runs]
    made = [run.last(f"actor/{kind}/trajectories") for run in runs]
    cost = [run.last(f"actor/{kind}/seconds") / max(count, 1) for run, count in zip(runs, made, strict=True)]
    figures = {
        "diverged": float(sum(run.diverged for run in runs)),
        "gap": statistics.median(gaps),
        "ess": statistics.median(run.metrics["eval/effective_sample_size"] for run in runs),
        "class_l1": statistics.median(run.metrics["eval/class_l1"] for run in runs),
        "acceptance": statistics.median(run.last(f"actor/{kind}/acceptance") for run in runs),
        "milliseconds": 1e3 * statistics.median(cost),
        "updates": statistics.median(run.last("learner/updates") for run in runs),
    }
    print(
        f"| `{kind}` | {', '.join(f'{value:.1f}' for value in gaps)} | {figures['ess']:.3f} "
        f"| {figures['class_l1']:.2f} | {figures['acceptance']:.2f} | {figures['milliseconds']:.2f} "
        f"| {figures['updates']:.0f} |"
    )
    return figures


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("exploration", __doc__ or "")
    runs = {run.name: run for run in run_all(benchmark, planned(benchmark))}
    figures: dict[str, float] = {}
    for name, case in CASES.items():
        print(f"\n| {name} | gap, each seed | ESS | class L1 | acceptance | ms a trajectory | updates |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for kind in case.kinds:
            part = [run for label, run in runs.items() if label.startswith(f"{name}-{kind}-seed")]
            label = f"{name}_{kind}".replace("-", "_")
            figures |= {f"{label}_{key}": value for key, value in row(kind, part).items()}
    finish(benchmark, "exploration, all runs", {"gap": elbo_gap}, list(runs.values()), figures)


if __name__ == "__main__":
    main()
