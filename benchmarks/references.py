"""`galaxy-field` and `xray-spectrum`: the trained posterior against references without diffusion.

Means and spreads of every element of x are compared in units of their joint Monte-Carlo error, root mean square over
elements: 1 is what two right answers give. Samples of the trained posterior are weighted by importance; the error of
HMC is the one between chains that do not know of each other. Of galaxy-field the reference has the prior of the very
chain; of xray-spectrum that of the mixture, which the chain approaches with its number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.galaxies import chain_power, whitened
from benchmarks.harness import Benchmark, collect, parse, run_all, seed_by_seed, shortened, write_figures
from benchmarks.hmc import hmc, tempered_log_evidence
from benchmarks.spectra import mixture_reference
from envs import InverseProblem
from system.assembly import build_problem
from system.config_file import load_config

__all__ = ["Estimate", "by_chain", "deviation", "galaxies", "spectrum", "weighted"]

CONFIGS = Path("configs/experiments")
SECONDS, SHORT_SECONDS = 120.0, 20.0  # of training, processor time
PATHS, SHORT_PATHS = 8_192, 512  # of the trained posterior: of a hundred a few matter
POPULATION, REPEATS = 256, 3
CHAINS, WARMUP, DRAWS = 48, 60, 150


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """Mean and spread of every element of x."""

    mean: Tensor
    """[D]."""
    mean_error: Tensor
    """[D] its standard error."""
    spread: Tensor
    """[D] E (x - c)^2 about the common centre c."""
    spread_error: Tensor
    """[D] its standard error."""


def weighted(samples: Tensor, weights: Tensor, centre: Tensor) -> Estimate:
    """Of independent `samples` [S, D] with `weights` [S] of sum one."""
    parts = []
    for value in (samples, (samples - centre).square()):
        mean = weights @ value
        parts += [mean, (weights.square() @ (value - mean).square()).sqrt()]
    return Estimate(mean=parts[0], mean_error=parts[1], spread=parts[2], spread_error=parts[3])


def by_chain(draws: Tensor, centre: Tensor) -> Estimate:
    """Of `draws` [S, C, D] of C independent chains."""
    parts = []
    for value in (draws, (draws - centre).square()):
        means = value.mean(0)
        parts += [means.mean(0), means.std(0) / math.sqrt(len(means))]
    return Estimate(mean=parts[0], mean_error=parts[1], spread=parts[2], spread_error=parts[3])


def deviation(one: Estimate, other: Estimate) -> tuple[float, float]:
    """Root mean square over elements of the difference of means, and of spreads, in units of its standard error."""
    mean = (one.mean - other.mean) / torch.hypot(one.mean_error, other.mean_error)
    spread = (one.spread - other.spread) / torch.hypot(one.spread_error, other.spread_error)
    return float(mean.square().mean().sqrt()), float(spread.square().mean().sqrt())


def galaxies(problem: InverseProblem, repeats: int = REPEATS) -> tuple[Estimate, float, float]:
    """Moments by HMC, and log Z with its standard error by tempered populations."""
    field, log_likelihood = whitened(problem, chain_power(problem.prior))
    dim, found = torch.Size(problem.event_shape).numel(), []
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(POPULATION, dim, generator=generator, dtype=torch.float64)
        evidence, end = tempered_log_evidence(log_likelihood, start, generator=generator)
        found.append(evidence)
    chains = hmc(
        lambda z: -z.square().sum(1) / 2 + log_likelihood(z),
        end[:CHAINS],
        warmup=WARMUP,
        draws=DRAWS,
        generator=torch.Generator().manual_seed(repeats),
    )
    draws = field(chains.draws.flatten(0, 1)).reshape(DRAWS, CHAINS, dim)
    return by_chain(draws, draws.mean((0, 1))), float(np.mean(found)), float(np.std(found, ddof=1) / repeats**0.5)


def spectrum(problem: InverseProblem) -> tuple[Estimate, float, float]:
    """Moments, and log Z with its standard error, by importance sampling over the components."""
    found = mixture_reference(problem)
    centre = found.weights @ found.samples
    return weighted(found.samples, found.weights, centre), found.log_partition, found.standard_error


def compare(config: Path, run: Path) -> dict[str, float]:
    """Figures of the trained `run` of `config`."""
    problem = build_problem(load_config(config, []))
    reference, log_partition, error = (galaxies if problem.name == "galaxy-field" else spectrum)(problem)
    with np.load(run / "samples.npz") as file:
        samples = torch.from_numpy(file["samples"]).double().flatten(1)
        log_weight = torch.from_numpy(file["log_weight"]).double()
    weights, count = log_weight.softmax(0), len(log_weight)
    mean, spread = deviation(weighted(samples, weights, reference.mean), reference)
    fraction = 1 / float(weights.square().sum()) / count
    return {
        "log_partition": log_partition,
        "log_partition_error": error,
        "iw": float(log_weight.logsumexp(0)) - math.log(count),
        "iw_error": math.sqrt((1 / fraction - 1) / count),
        "ess": fraction,
        "mean": mean,
        "spread": spread,
    }


def planned(benchmark: Benchmark) -> tuple[dict[str, Any], Any]:
    """The configurations, and a training run of each."""
    seconds = SHORT_SECONDS if benchmark.short else SECONDS
    trees = {name: shortened(CONFIGS / f"{name}.yaml", {}, seconds) for name in ("galaxy_field", "xray_spectrum")}
    for tree in trees.values():
        tree["evaluation"]["final_trajectories"] = SHORT_PATHS if benchmark.short else PATHS
    return trees, seed_by_seed(benchmark, trees, dict.fromkeys(trees, (0,)))


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("references", __doc__ or "")
    trees, plan = planned(benchmark)
    run_all(benchmark, plan)
    calls = {
        f"{name}-compared": (compare, benchmark.out / "configs" / f"{name}.yaml", benchmark.out / f"{name}-seed0")
        for name in trees
    }
    results = collect(benchmark, calls)
    figures = {f"{name}_{key}": value for name in trees for key, value in results[f"{name}-compared"].items()}
    for name, value in figures.items():
        print(f"{name:40} {value:.4f}")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
