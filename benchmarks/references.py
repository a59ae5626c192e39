"""`galaxy-field` and `xray-spectrum`: the trained posterior and exact path search against references without diffusion.

Means and spreads of every element of x are compared in units of their joint Monte-Carlo error, root mean square over
elements: 1 is what two right answers give. Samples of the trained posterior are weighted by importance; the error of
path search is that of as many independent draws as it says it is worth, which is a conservative number; that of HMC is
the one between chains that do not know of each other. Of galaxy-field the references have the prior of the very chain;
of xray-spectrum that of the mixture, which the chain approaches with its number of steps.
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
from system.exact import ExactConfig, sample_exactly

__all__ = ["Estimate", "by_chain", "deviation", "galaxies", "spectrum", "weighted"]

CONFIGS = Path("configs/experiments")
SECONDS, SHORT_SECONDS = 120.0, 20.0  # of training, processor time
SEARCH_SECONDS, SHORT_SEARCH_SECONDS = 900.0, 120.0  # of path search at most, by the clock
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


def compare(config: Path, run: Path, seconds: float) -> dict[str, float]:
    """Figures of the trained `run` of `config` and of path search for `seconds`."""
    problem = build_problem(load_config(config, []))
    reference, log_partition, error = (galaxies if problem.name == "galaxy-field" else spectrum)(problem)
    centre = reference.mean
    with np.load(run / "samples.npz") as file:
        samples = torch.from_numpy(file["samples"]).double().flatten(1)
        log_weight = torch.from_numpy(file["log_weight"]).double()
    weights = log_weight.softmax(0)
    trained = deviation(weighted(samples, weights, centre), reference)
    count, fraction = len(log_weight), 1 / float(weights.square().sum()) / len(log_weight)
    found = sample_exactly(problem, 0, ExactConfig(max_seconds=seconds, effective_samples=1_000, num_samples=2_000))
    drawn = found.samples.double().flatten(1)
    # Thinned draws are not independent: the weights' sum of squares is one over what they are worth.
    worth = min(found.effective_samples, len(drawn))
    exact = weighted(drawn, torch.full((len(drawn),), 1 / len(drawn), dtype=torch.float64), centre)
    scale = math.sqrt(len(drawn) / worth)
    exact = Estimate(
        mean=exact.mean,
        mean_error=exact.mean_error * scale,
        spread=exact.spread,
        spread_error=exact.spread_error * scale,
    )
    searched = deviation(exact, reference)
    return {
        "log_partition": log_partition,
        "log_partition_error": error,
        "trained_iw": float(log_weight.logsumexp(0)) - math.log(count),
        "trained_ess": fraction,
        "trained_mean": trained[0],
        "trained_spread": trained[1],
        "exact_log_partition": found.log_partition,
        "exact_log_partition_error": found.log_partition_standard_error,
        "exact_worth": worth,
        "exact_mixed": float(found.mixed),
        "exact_mean": searched[0],
        "exact_spread": searched[1],
    }


def planned(benchmark: Benchmark) -> tuple[dict[str, Any], Any]:
    """The configurations, and a training run of each."""
    seconds = SHORT_SECONDS if benchmark.short else SECONDS
    trees = {name: shortened(CONFIGS / f"{name}.yaml", {}, seconds) for name in ("galaxy_field", "xray_spectrum")}
    return trees, seed_by_seed(benchmark, trees, dict.fromkeys(trees, (0,)))


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("references", __doc__ or "")
    trees, plan = planned(benchmark)
    run_all(benchmark, plan)
    seconds = SHORT_SEARCH_SECONDS if benchmark.short else SEARCH_SECONDS
    calls = {
        f"{name}-compared": (
            compare,
            benchmark.out / "configs" / f"{name}.yaml",
            benchmark.out / f"{name}-seed0",
            seconds,
        )
        for name in trees
    }
    results = collect(benchmark, calls)
    figures = {f"{name}_{key}": value for name in trees for key, value in results[f"{name}-compared"].items()}
    for name, value in figures.items():
        print(f"{name:40} {value:.4f}")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
