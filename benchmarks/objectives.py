"""Every objective on three problems at equal processor time, five seeds each: what it reaches, and if it diverges.

Runs differ in the objective and in what it needs: those that minimise a divergence of fresh trajectories get fresh ones
(each drawn once, when it is new), `mle` draws by importance, `path_kl` has a control without likelihood gradients,
which it cannot differentiate. All else is the same, and nothing was tuned for any of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Benchmark, Finished, Planned, elbo_gap, finish, limited, parse, run_all, seed_by_seed

SEEDS = range(5)
SECONDS, SHORT_SECONDS = 30.0, 10.0
BATCH = 64


PROBLEMS: dict[str, dict[str, Any]] = {
    "gmm-linear-16": {"name": "gmm-linear", "dim": 16},
    "gmm-25-to-9": {"name": "gmm-25-to-9"},
    "digits-half": {"name": "digits-half", "digit": 20, "noise_std": 0.3},
}
ANYWHERE = ("vargrad", "rtb", "trust_pcl", "subtb", "tb")
FRESH = ("reinforce_kl", "ppo_kl", "adjoint_matching", "path_kl")
OBJECTIVES = (*ANYWHERE, *FRESH, "mle")
ON_POLICY = {"mixture": {"on-policy": 1.0}, "final_mixture": {"on-policy": 1.0}}
REPLAYED = {"priority": "uniform", "newest_share": 0.5, "newest_window": 512, "samples_per_insert": 4.0}
ONCE = {"priority": "uniform", "newest_share": 1.0, "newest_window": BATCH, "samples_per_insert": 1.0}
IMPORTANCE = {"priority": "importance", "newest_share": 0.0, "samples_per_insert": 4.0}


def configured(problem: Mapping[str, Any], objective: str, seconds: float) -> dict[str, Any]:
    """The tree of a configuration file."""
    learner = {"objective": objective, "batch_size": BATCH, "learning_rate": 0.002, "warmup_updates": 50}
    replay = ONCE if objective in FRESH else IMPORTANCE if objective == "mle" else REPLAYED
    gradient = "none" if objective == "path_kl" else "state"
    return limited(seconds) | {
        "problem": dict(problem),
        "posterior": {"hidden": 128, "likelihood_gradient": gradient},
        "actor": {"batch_size": BATCH, **ON_POLICY},
        "learner": learner,
        "replay": dict(replay),
    }


def planned(benchmark: Benchmark) -> list[Planned]:
    """All runs."""
    seconds = SHORT_SECONDS if benchmark.short else SECONDS
    trees = {
        f"{name}-{objective}": configured(problem, objective, seconds)
        for name, problem in PROBLEMS.items()
        for objective in OBJECTIVES
    }
    return seed_by_seed(benchmark, trees, dict.fromkeys(trees, SEEDS))


def row(objective: str, runs: Sequence[Finished]) -> dict[str, float]:
    """Figures of one line of a table, which is printed."""

    def middle(name: str) -> float:
        return statistics.median(run.metrics[f"eval/{name}"] for run in runs)

    gaps = [elbo_gap(run) for run in runs]
    errors = [abs(run.metrics["eval/iw_log_partition"] - run.metrics["eval/exact_log_partition"]) for run in runs]
    figures = {
        "elbo_gap": statistics.median(gaps),
        "elbo_gap_max": max(gaps),
        "log_partition_error": statistics.median(errors),
        "ess": middle("effective_sample_size"),
        "w2": middle("w2"),
        "class_l1": middle("class_l1"),
        "diverged": float(sum(run.diverged for run in runs)),
        "updates": statistics.median(run.last("learner/updates") for run in runs),
    }
    print(
        f"| `{objective}` | {figures['elbo_gap']:.2f} | {figures['elbo_gap_max']:.2f} "
        f"| {figures['log_partition_error']:.2f} | {figures['ess']:.3f} | {figures['w2']:.2f} "
        f"| {figures['class_l1']:.2f} | {figures['diverged']:.0f} of {len(runs)} | {figures['updates']:.0f} |"
    )
    return figures


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("objectives", __doc__ or "")
    runs = {run.name: run for run in run_all(benchmark, planned(benchmark))}
    figures: dict[str, float] = {}
    for name in PROBLEMS:
        print(f"\n| {name} | ELBO gap | worst | IW error | ESS | W2 | class L1 | diverged | updates |")
        print("|---|" + "---:|" * 8)
        for objective in OBJECTIVES:
            part = [run for label, run in runs.items() if label.startswith(f"{name}-{objective}-seed")]
            label = f"{name}_{objective}".replace("-", "_")
            figures |= {f"{label}_{key}": value for key, value in row(objective, part).items()}
    finish(benchmark, "objectives, all runs", {"ELBO gap": elbo_gap}, list(runs.values()), figures)


if __name__ == "__main__":
    main()
