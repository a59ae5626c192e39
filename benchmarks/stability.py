"""Diverged runs out of all: twelve seeds of seven problems, and what replay, exploration and guard do.

Every run is a shipped configuration cut to 90 CPU-seconds of training: nothing is set for a seed, and none is left
out. On three problems each of replay, exploration and the guard is switched off, one at a time, for eight seeds.

    replay off        every trajectory is used once, when it is new; with that goes all that draws by importance
    exploration off   on-policy rollouts alone
    guard off         nothing is set aside for its size, nothing is rolled back
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Finished, Planned, elbo_gap, finish, parse, run_all, seed_by_seed, shortened

CONFIGS = Path("configs/experiments")
SECONDS, SHORT_SECONDS = 90.0, 15.0
SEEDS, ABLATION_SEEDS = range(12), range(8)


@dataclass(frozen=True)
class Case:
    """A problem of the table."""

    config: str
    """File under configs/experiments."""
    options: Mapping[str, Any]
    """Of the problem, beside those of the file."""


CASES = {
    "digits-half": Case("digits_half", {"noise_std": 0.3}),
    "digits-half-hard": Case("digits_half", {"noise_std": 0.05}),
    "gmm-linear-64": Case("gmm_linear", {"dim": 64, "modes": 8}),
    "gmm-25-to-9": Case("gmm_25_to_9", {}),
    "digits-phase": Case("digits_phase", {}),
    "gmm-25": Case("gmm_25", {}),
    "manywell": Case("manywell", {}),
}
ABLATED = ("gmm-25-to-9", "gmm-25", "manywell")
ON_POLICY = {"mixture": {"on-policy": 1.0}, "final_mixture": {"on-policy": 1.0}}
SWITCHED_OFF: dict[str, dict[str, Any]] = {
    "replay": {
        "replay": {"priority": "uniform", "newest_share": 1.0, "samples_per_insert": 1.0},
        "learner": {"forward_kl": 0.0, "pretraining": {"until": 0.0}},
    },
    "exploration": {"actor": ON_POLICY},
    "guard": {"learner": {"guard": {"factor": None, "patience": 1_000_000}}},
}


def configured(case: Case, off: str = "", seconds: float = SECONDS) -> dict[str, Any]:
    """The tree of a configuration file."""
    tree = shortened(CONFIGS / f"{case.config}.yaml", case.options, seconds)
    return _merged(tree, SWITCHED_OFF.get(off, {}))


def _merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in changes.items():
        replaced = key in ("mixture", "final_mixture") or not isinstance(value, dict)
        merged[key] = value if replaced else _merged(merged.get(key) or {}, value)
    return merged


def planned(benchmark: Benchmark) -> list[Planned]:
    """All runs."""
    seconds = SHORT_SECONDS if benchmark.short else SECONDS
    trees = {name: configured(case, "", seconds) for name, case in CASES.items()}
    seeds: dict[str, Sequence[int]] = dict.fromkeys(trees, SEEDS)
    for name in ABLATED:
        for off in SWITCHED_OFF:
            trees[f"{name}-without-{off}"] = configured(CASES[name], off, seconds)
            seeds[f"{name}-without-{off}"] = ABLATION_SEEDS
    return seed_by_seed(benchmark, trees, seeds)


def row(label: str, runs: Sequence[Finished]) -> dict[str, float]:
    """Figures of one line of the table."""
    gaps = [elbo_gap(run) for run in runs]
    figures = {
        "diverged": float(sum(run.diverged for run in runs)),
        "runs": float(len(runs)),
        "gap": statistics.median(gaps),
        "gap_max": max(gaps),
        "ess": statistics.median(run.metrics["eval/effective_sample_size"] for run in runs),
        "class_l1": statistics.median(run.metrics["eval/class_l1"] for run in runs),
        "class_l1_max": max(run.metrics["eval/class_l1"] for run in runs),
        "set_aside": sum(run.last("learner/set_aside") for run in runs),
        "rollbacks": sum(run.last("learner/rollbacks") for run in runs),
    }
    print(
        f"| {label} | {figures['diverged']:.0f} of {len(runs)} | {figures['gap']:.2f} | {figures['gap_max']:.2f} "
        f"| {figures['ess']:.3f} | {figures['class_l1']:.3f} | {figures['class_l1_max']:.3f} "
        f"| {figures['set_aside']:.0f} | {figures['rollbacks']:.0f} |"
    )
    return figures


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("stability", __doc__ or "")
    runs = run_all(benchmark, planned(benchmark))
    labels = list(dict.fromkeys(run.name.rsplit("-seed", 1)[0] for run in runs))
    print("\n| problem | diverged | gap | worst | ESS | class L1 | worst | set aside | rollbacks |")
    print("|---|---:|" + "---:|" * 7)
    figures: dict[str, float] = {}
    for label in labels:
        part = [run for run in runs if run.name.rsplit("-seed", 1)[0] == label]
        figures |= {f"{label.replace('-', '_')}_{key}": value for key, value in row(label, part).items()}
    whole = [run for run in runs if "-without-" not in run.name]
    summary = {
        "diverged_fraction": sum(run.diverged for run in whole) / len(whole),
        "runs": float(len(whole)),
        "cpu_seconds": statistics.median(run.cpu_seconds for run in whole),
    }
    columns = {
        "gap": elbo_gap,
        "ESS": lambda run: run.metrics["eval/effective_sample_size"],
        "class L1": lambda run: run.metrics["eval/class_l1"],
        "updates": lambda run: run.last("learner/updates"),
        "CPU s": lambda run: run.cpu_seconds,
    }
    finish(benchmark, "stability, all runs", columns, runs, summary | figures)


if __name__ == "__main__":
    main()
