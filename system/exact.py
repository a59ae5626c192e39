"""`rtb sample --exact`: posterior samples by path-space search alone, with what is needed to trust them.

Several populations that never meet are tempered and moved (`actors.path_search`); that they agree is the evidence that
they have mixed (`evaluation.mixing`), and their estimates of the evidence give it a standard error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.path_search import PathSearch
from actors.rollout import Control
from envs import InverseProblem
from evaluation.bounds import bridge_log_partition, bridge_variance
from evaluation.mixing import nested_r_hat, population_effective_sample_size
from system.errors import RunnerError

__all__ = ["ExactConfig", "ExactSamples", "sample_exactly"]

STARTS = ("prior", "posterior")
SETTLING = 20  # sweeps at beta = 1 in which the choice of k still adapts; they are not kept

Draw = tuple[Tensor, Tensor]  # x [N, *D] and log p(y | x) [N] of a population
Progress = Callable[[Mapping[str, float]], None]  # takes the newest numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactConfig:
    """How long and how wide."""

    num_samples: int = 1_000
    """Samples to return."""
    populations: int = 4
    """Populations that never meet."""
    chains: int = 256
    """Paths in each."""
    r_hat: float = 1.01
    """Stop when no quantity has a larger R^, and"""
    effective_samples: int = 400
    """the samples are worth this many independent ones."""
    max_seconds: float = 600.0
    """Or stop after this time, mixed or not."""
    seed: int = 0
    """Seed of all random numbers."""
    start: str = "prior"
    """Where populations start: from paths of the `prior`, or of the trained `posterior`."""

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("populations", 2), ("chains", 2), ("effective_samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.start not in STARTS:
            raise ValueError(f"start must be {' or '.join(STARTS)}, got {self.start!r}")
        if not self.r_hat > 1:
            raise ValueError(f"r_hat must be above 1, got {self.r_hat}")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactSamples:
    """Samples of the posterior of the discrete chain, and how far they can be trusted."""

    samples: Tensor
    """[S, *D]."""
    log_likelihood: Tensor
    """[S] log p(y | x), nats."""
    population: Tensor
    """[S] which population each came from."""
    mixed: bool
    """Whether the stop rule was met in time."""
    r_hat: float
    """Largest R^ of any quantity."""
    worst: str
    """The quantity that has it."""
    effective_samples: float
    """Independent draws that all kept draws are worth."""
    acceptance: float
    """Share of suffix proposals that were accepted at beta = 1."""
    invalid: int
    """Proposals whose log-likelihood was NaN or +inf, and which were refused for it."""
    log_partition: float
    """log Z of the chain, nats."""
    log_partition_standard_error: float
    """Its standard error, from the populations."""
    temperatures: int
    """Most steps of beta that a population took."""
    sweeps: int
    """Sweeps of each population after tempering, kept ones and others between them."""
    thinning: int
    """Sweeps from one kept draw to the next."""
    seconds: float
    """Wall time."""
    start: str
    """Where the populations started, see `ExactConfig`."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has one entry a sample, for an npz file."""
        return {name: getattr(self, name).numpy() for name in ("samples", "log_likelihood", "population")}

    def figures(self) -> dict[str, float | str | bool]:
        """Everything else, for a JSON file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if not isinstance(value, Tensor)}

    def lines(self) -> list[str]:
        """What the user is told."""
        verdict = "mixed" if self.mixed else "NOT MIXED: the populations do not agree yet; give it more --max-seconds"
        lines = [
            f"{verdict}",
            f"largest R^ {self.r_hat:.3f} ({self.worst}), worth {self.effective_samples:.0f} independent samples",
            f"log Z of the chain {self.log_partition:.3f} +- {self.log_partition_standard_error:.3f}",
            f"{self.temperatures} temperatures, {self.sweeps} sweeps, every {self.thinning} kept; "
            f"{self.acceptance:.1%} of suffixes accepted; {self.seconds:.0f} s",
        ]
        if self.start == "posterior":
            lines.append("started from the trained posterior: a mode that it has no paths of is missing here too")
        if self.invalid:
            lines.append(f"{self.invalid} proposals were refused, as their log-likelihood was NaN or +inf")
        return lines


def sample_exactly(
    problem: InverseProblem,
    measurement_id: int,
    config: ExactConfig,
    *,
    control: Control | None = None,
    progress: Progress = lambda numbers: None,
) -> ExactSamples:
    """Samples of p(x | y) under the discrete chain; `control` (of a trained posterior, say) is one more proposal.

    With `config.start` posterior it is also where the populations start: the better it is the fewer temperatures they
    need. A mode that it has no paths of they then have not either, all of them, so that their agreement does not tell.

    Raises:
        RunnerError: no path to start from has a finite likelihood, or there was no time to temper all populations.
        ValueError: they are to start from a posterior, and there is no control.
    """
    if config.start == "posterior" and control is None:
        raise ValueError("to start from the posterior takes a trained run, got a problem alone")
    with problem.placement():
        return _sample(problem, measurement_id, config, control, progress)


def _sample(
    problem: InverseProblem,
    measurement_id: int,
    config: ExactConfig,
    control: Control | None,
    progress: Progress,
) -> ExactSamples:
    began = time.perf_counter()

    def left() -> float:
        return config.max_seconds - (time.perf_counter() - began)

    populations, temperatures = [], []
    for index in range(config.populations):
        seed = int(np.random.SeedSequence((config.seed, index)).generate_state(1)[0])
        start = control if config.start == "posterior" else None
        search = PathSearch(problem, measurement_id, config.chains, generator=problem.generator(seed), start=start)
        progress({"exact/population": index + 1})
        temperatures.append(_temper(search, control, left, progress))
        populations.append(search)
    for search in populations:
        search.fit_guide()
        for _ in range(SETTLING):
            if left() > 0:
                search.sweep(control)
        search.adapting = False

    # Every thinning-th draw is kept; when there are twice as many as asked for, every other one is dropped.
    kept: list[list[Draw]] = [[] for _ in populations]
    wanted = math.ceil(config.num_samples / (config.populations * config.chains))
    thinning, sweeps, accepted = 1, 0, 0.0
    while True:
        for search, draws in zip(populations, kept, strict=True):
            accepted += search.sweep(control)
            if (sweeps + 1) % thinning == 0:
                draws.append((_copied(search.samples), _copied(search.log_likelihood)))
        sweeps += 1
        if len(kept[0]) < 2 or (sweeps % thinning and left() > 0):
            continue
        r_hat, worst, effective = _mixing(problem, kept)
        mixed = r_hat <= config.r_hat and effective >= config.effective_samples and len(kept[0]) >= wanted
        if mixed or left() < 0:
            break
        progress({"exact/sweeps": sweeps, "exact/r_hat": r_hat, "exact/effective_samples": effective})
        if len(kept[0]) >= max(2 * wanted, 8):
            kept = [draws[1::2] for draws in kept]
            thinning *= 2
    log_partition, error = _evidence(populations, temperatures, control)
    return ExactSamples(
        **_pick(kept, config),
        mixed=mixed,
        r_hat=r_hat,
        worst=worst,
        effective_samples=effective,
        acceptance=accepted / (sweeps * len(populations)),
        invalid=sum(search.invalid for search in populations),
        log_partition=log_partition,
        log_partition_standard_error=error,
        temperatures=max(temperatures),
        sweeps=sweeps,
        thinning=thinning,
        seconds=time.perf_counter() - began,
        start=config.start,
    )


def _temper(search: PathSearch, control: Control | None, left: Callable[[], float], progress: Progress) -> int:
    """Brings a population from where it started to the posterior; the number of temperatures."""
    temperatures = 0
    while search.beta < 1:
        try:
            search.temper()
        except ValueError as error:
            raise RunnerError(str(error)) from None
        temperatures += 1
        progress({"exact/beta": search.beta})
        search.settle(control, stop=lambda: left() < 0)
        if left() < 0:
            raise RunnerError(
                f"the time was up at beta {search.beta:.3g} on the way from the start (0) to the posterior (1); "
                "raise --max-seconds, or lower --chains, or --start at the posterior of a run"
            )
    return temperatures


def _evidence(
    populations: Sequence[PathSearch], temperatures: Sequence[int], control: Control | None
) -> tuple[float, float]:
    """(log Z, its standard error): from tempering, or bridged from paths of a kernel to the population's own.

    The estimate whose variance is smallest by its own theory: to choose by how far the populations are apart, from
    which the error comes, would make that too small. Of a temperature it is (1 / ESS - 1) / N, and ESS is a half. An
    infinite weight rules an estimate out.
    """
    count = len(populations[0].states)
    best = [search.log_partition for search in populations]
    least = sum(temperatures) / len(temperatures) / count
    kernels = [search.kernels(control) for search in populations]
    for name in kernels[0]:
        values, variances = [], []
        for search, own in zip(populations, kernels, strict=True):
            proposed, posterior = search.log_weights(own[name])
            # As the moves take it: never accepted.
            proposed = torch.where(torch.isfinite(proposed), proposed, -math.inf)
            if bool(torch.isfinite(proposed).any()) and bool(torch.isfinite(posterior).all()):
                values.append(bridge_log_partition(proposed, posterior))
                variances.append(bridge_variance(proposed, posterior, values[-1]))
        if len(values) == len(populations) and sum(variances) / len(variances) < least:
            best, least = values, sum(variances) / len(variances)
    return float(np.mean(best)), float(np.std(best, ddof=1)) / math.sqrt(len(best))


def _mixing(problem: InverseProblem, kept: list[list[Draw]]) -> tuple[float, str, float]:
    """(largest R^, its quantity, effective samples) of x, x^2, log p(y | x) and the problem's classes."""
    names: list[str] = []
    populations = []
    for draws in kept:
        value = torch.cat([sample for sample, _ in draws]).double()
        flat = value.flatten(1)
        parts = [flat, flat.square(), torch.cat([likelihood for _, likelihood in draws])[:, None].double()]
        names = [f"{name}[{index}]" for name in ("x", "x^2") for index in range(flat.shape[1])] + ["log p(y | x)"]
        if problem.classes is not None:
            parts.append(problem.classes.probabilities(value).double())
            names += problem.classes.names
        populations.append(torch.cat(parts, 1))
    draws_of_all = torch.stack(populations)
    r_hat = nested_r_hat(draws_of_all)
    worst = int(r_hat.argmax())
    return float(r_hat[worst]), names[worst], population_effective_sample_size(draws_of_all)


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)


def _pick(kept: list[list[Draw]], config: ExactConfig) -> dict[str, Tensor]:
    """The asked number of draws, or all there are: of as few sweeps as give that many, far apart, the last included.

    Two chains are independent long before two draws of one chain are.
    """
    wanted = math.ceil(config.num_samples / (config.populations * config.chains))
    chosen = torch.linspace(len(kept[0]) - 1, 0, max(wanted, 1), device="cpu").round().long().unique()
    kept = [[draws[index] for index in chosen.tolist()] for draws in kept]
    samples = torch.cat([sample for draws in kept for sample, _ in draws])
    log_likelihood = torch.cat([likelihood for draws in kept for _, likelihood in draws])
    population = torch.arange(len(kept), device="cpu").repeat_interleave(len(samples) // len(kept))
    rows = torch.linspace(0, len(samples) - 1, min(config.num_samples, len(samples)), device="cpu").round().long()
    return {"samples": samples[rows], "log_likelihood": log_likelihood[rows], "population": population[rows]}
