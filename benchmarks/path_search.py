"""Exact path-space search against closed forms: 1,000 chains from paths of the prior, no training.

Four populations of 250 chains each, on gaussian-linear and gmm-linear in 16 dimensions, run until the stop rule of
`rtb sample --exact` is met. Squared errors of the 1,000 samples that are returned, relative to what Monte Carlo alone
would give with as many independent draws as they are worth: about 1 where the sampler is right.
"""

from __future__ import annotations

import os
import platform
import statistics

import torch
from torch import Tensor

from benchmarks.harness import parse, write_figures
from envs import InverseProblem, make_problem
from evaluation.distance import class_l1
from evaluation.mixing import population_effective_sample_size
from system.exact import ExactConfig, ExactSamples, sample_exactly

SEEDS = range(5)
MAX_SECONDS = 300.0


def worth(result: ExactSamples) -> float:
    """Independent draws that the returned samples are worth for the means of x and x^2, told by the populations."""
    count = int(torch.bincount(result.population).min())
    draws = torch.stack([result.samples[result.population == index][:count] for index in result.population.unique()])
    return population_effective_sample_size(torch.cat([draws, draws.square()], 2))


def moment_ratios(samples: Tensor, mean: Tensor, covariance: Tensor, count: float) -> tuple[float, float]:
    """Squared errors of mean and covariance of `samples` [N, D], whitened, relative to those of `count` exact draws."""
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (samples.double() - mean).T, upper=False)
    dim, size = white.shape
    offset, second = white.mean(1), white @ white.T / size - torch.eye(dim, dtype=torch.float64)
    return float(offset @ offset) / dim * count, float(second.square().sum()) / (dim * (dim + 1)) * count


def mode_ratio(shares: Tensor, exact: Tensor, count: float) -> float:
    """Mean over modes of the squared error of `shares` [C], relative to that of `count` exact draws."""
    return float(((shares - exact).square() / (exact * (1 - exact) / count)).mean())


def run(problem: InverseProblem, seed: int) -> ExactSamples:
    """One exact sampling of 1,000 samples by 1,000 chains."""
    return sample_exactly(problem, 0, ExactConfig(chains=250, seed=seed, max_seconds=MAX_SECONDS))


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("path_search", __doc__ or "")
    print(f"\npath search\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| run | mixed | R^ | worth | log Z error | mean | covariance | modes | mode L1 | accepted | seconds |")
    print("|---|---|" + "---:|" * 9)
    figures: dict[str, list[float]] = {}
    for name in ("gaussian-linear", "gmm-linear"):
        problem = make_problem(name, {"dim": 16})
        exact = problem.exact[0]
        for seed in SEEDS[:1] if benchmark.short else SEEDS:
            result = run(problem, seed)
            error = abs(result.log_partition - exact.log_partition)
            row = {"mixed": float(result.mixed), "log_partition_error": error}
            mean = covariance = modes = l1 = float("nan")
            if problem.classes is None or problem.class_probabilities(0) is None:
                mean, covariance = moment_ratios(result.samples, exact.mean, exact.covariance, worth(result))
                row |= {"mean_error_ratio": mean, "covariance_error_ratio": covariance}
            else:
                shares = problem.classes.probabilities(result.samples).double().mean(0)
                modes = mode_ratio(shares, problem.class_probabilities(0), worth(result))
                l1 = class_l1(shares, problem.class_probabilities(0))
                row |= {"mode_error_ratio": modes, "mode_l1": l1}
            for key, value in row.items():
                figures.setdefault(f"{name.replace('-', '_')}_{key}", []).append(value)
            print(
                f"| {name} seed {seed} | {'yes' if result.mixed else 'no'} | {result.r_hat:.4f} "
                f"| {worth(result):.0f} | {error:.3f} | {mean:.2f} | {covariance:.2f} | {modes:.2f} | {l1:.3f} "
                f"| {result.acceptance:.2f} | {result.seconds:.0f} |",
                flush=True,
            )
    medians = {
        key: statistics.mean(values) if key.endswith("mixed") else statistics.median(values)
        for key, values in figures.items()
    }
    print()
    for key, value in medians.items():
        print(f"{key:50} {value:.4f}")
    write_figures(benchmark.json, medians)


if __name__ == "__main__":
    main()
