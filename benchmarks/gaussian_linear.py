"""A linear Gaussian problem in 16 dimensions: evidence and moments against the closed form, five seeds, local runner.

With self-normalised importance weights w of the N samples, whitened by the exact posterior (mean m, covariance L L^T,
z_i = L^-1 (x_i - m)), the errors of the moments are compared with what Monte Carlo alone would give,

    mean:        |sum_i w_i z_i|^2 / (d s),                        s = sum_i w_i^2,
    covariance:  |sum_i w_i z_i z_i^T - I|_F^2 / (d (d + 1) s),

both 1 on average for exact draws with independent weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Finished, by_seed, finish, median, parse, run_all
from envs import make_problem

CONFIG = Path("configs/experiments/gaussian_linear.yaml")
SEEDS = range(5)


def error(run: Finished) -> float:
    """|IW-4096 - exact log Z|, nats."""
    return abs(run.metrics["eval/iw_log_partition"] - run.metrics["eval/exact_log_partition"])


def moments(samples: Path, *, weighted: bool = True) -> tuple[float, float]:
    """Squared errors of mean and covariance of the draws in `samples`, relative to those of exact draws."""
    exact = make_problem("gaussian-linear", {"dim": 16}).exact[0]
    with np.load(samples) as stored:
        value = torch.from_numpy(stored["samples"]).double()
        log_weight = torch.from_numpy(stored["log_weight"]).double()
    weight = log_weight.softmax(0) if weighted else torch.full_like(log_weight, 1 / len(log_weight))
    factor = torch.linalg.cholesky(exact.covariance)
    white = torch.linalg.solve_triangular(factor, (value - exact.mean).T, upper=False)  # [d, N]
    dim, spread = len(white), float(weight.square().sum())
    mean = white @ weight
    second = (white * weight) @ white.T - torch.eye(dim, dtype=torch.float64)
    return float(mean @ mean) / (dim * spread), float(second.square().sum()) / (dim * (dim + 1) * spread)


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("gaussian_linear", __doc__ or "")
    runs = run_all(benchmark, by_seed(CONFIG, SEEDS[:1] if benchmark.short else SEEDS))

    def of(run: Finished, index: int, *, weighted: bool = True) -> float:
        return moments(benchmark.out / run.name / "samples.npz", weighted=weighted)[index]

    figures = {
        "log_partition_error": max(map(error, runs)),
        "mean_error_ratio": median(runs, lambda run: of(run, 0)),
        "mean_error_ratio_max": max(of(run, 0) for run in runs),
        "covariance_error_ratio": median(runs, lambda run: of(run, 1)),
        "covariance_error_ratio_max": max(of(run, 1) for run in runs),
        "ess": median(runs, lambda run: run.metrics["eval/effective_sample_size"]),
        "diverged": float(sum(run.diverged for run in runs)),
    }
    columns = {
        "exact log Z": lambda run: run.metrics["eval/exact_log_partition"],
        "IW error": error,
        "ELBO gap": lambda run: run.metrics["eval/exact_log_partition"] - run.metrics["eval/elbo"],
        "ESS": lambda run: run.metrics["eval/effective_sample_size"],
        "mean, weighted": lambda run: of(run, 0),
        "covariance, weighted": lambda run: of(run, 1),
        "mean, as drawn": lambda run: of(run, 0, weighted=False),
        "covariance, as drawn": lambda run: of(run, 1, weighted=False),
        "seconds": lambda run: run.last("system/seconds"),
    }
    finish(benchmark, "gaussian-linear, d = 16, all seeds", columns, runs, figures)


if __name__ == "__main__":
    main()
