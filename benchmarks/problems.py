"""Every registered problem, trained for two minutes of processor time as it ships, in its small variant, one seed.

A problem is fine if its posterior did not diverge, its ELBO rose above that of the prior's rollouts, and what it says
can be checked: the importance-weighted evidence is within 0.1 nats and 1 % of the dimension of the exact one where that
is known, and the residuals of its corrected samples (`evaluation.corrected`) have a reduced chi square within 0.2 of
that of exact samples, or of one, its mean over truths from the prior, where none are known. The table shows which of
these a problem has, and the chi square of the samples as they are drawn; `problems_ok` counts those that keep all.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from actors.rollout import rollout
from benchmarks.harness import Benchmark, Finished, Planned, finish, parse, run_all, seed_by_seed, shortened
from envs import InverseProblem, make_problem, problem_names
from evaluation import bounds

CONFIGS = Path("configs/experiments")
SECONDS, SHORT_SECONDS = 120.0, 10.0
ROLLOUTS = 512
CHI_SQUARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a problem is trained."""

    config: str
    """File under configs/experiments."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the problem, beside those of the file."""
    posterior: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `posterior` that the file's header advises."""
    from_prior: bool = False
    """Whether the x that was measured is a draw of the prior, so that residuals have a known mean square."""


CASES = {
    "chaos-henon-heiles": Case(config="chaos", from_prior=True),
    "chaos-lorenz63": Case(config="chaos", from_prior=True),
    "chaos-lorenz96": Case(config="chaos_lorenz96", from_prior=True),
    "cluster-sz-xray": Case(config="cluster_sz_xray", from_prior=True),
    "digits-half": Case(config="digits_half"),
    "digits-phase": Case(config="digits_phase"),
    "funnel": Case(config="funnel"),
    "galaxy-field": Case(config="galaxy_field", from_prior=True),
    "gaussian-field": Case(config="gaussian_field", options={"size": 32}, from_prior=True),
    "gaussian-linear": Case(config="gaussian_linear", from_prior=True),
    "gmm-25": Case(config="gmm_25"),
    "gmm-25-to-9": Case(config="gmm_25_to_9"),
    "gmm-linear": Case(config="gmm_linear", from_prior=True),
    "inverse-design": Case(config="inverse_design"),
    "lensing-euclid": Case(config="lensing", options={"prior": "galaxies"}),
    "lensing-joint": Case(config="lensing_joint", options={"prior": "galaxies"}, from_prior=True),
    "lensing-source": Case(config="lensing", options={"prior": "galaxies"}, from_prior=True),
    "lgcp": Case(config="lgcp"),
    "manywell": Case(config="manywell"),
    "mass-map": Case(config="mass_map", from_prior=True),
    "psf-deconvolution": Case(config="psf_deconvolution", options={"prior": "galaxies"}, from_prior=True),
    "radio-closure": Case(config="radio_closure", from_prior=True),
    "radio-uv": Case(config="radio_uv", from_prior=True),
    "rare-event": Case(config="rare_event"),
    "xray-spectrum": Case(config="xray_spectrum", from_prior=True),
    **{name: Case(config="sbibm", from_prior=True) for name in problem_names() if name.startswith("sbibm-")},
    **{
        name: Case(config="image", options={"truth": "prior"}, from_prior=True)
        for name in problem_names()
        if name.startswith("image-")
    },
    **{
        f"image-{name}": Case(
            config="image",
            options={"truth": "prior"},
            posterior={"likelihood_gradient": "repeated-covariance"},
            from_prior=True,
        )
        for name in ("hdr", "nonlinear-deblurring", "phase-retrieval", "quantisation")
    },
    "image-class": Case(config="image_class"),
    **{name: Case(config="latent", from_prior=True) for name in problem_names() if name.startswith("latent-")},
}


def planned(benchmark: Benchmark, names: Sequence[str] = tuple(CASES)) -> list[Planned]:
    """One run of every problem of `names`."""
    seconds = SHORT_SECONDS if benchmark.short else SECONDS
    trees = {
        name: shortened(CONFIGS / f"{CASES[name].config}.yaml", {"name": name, **CASES[name].options}, seconds)
        for name in names
    }
    for name in names:
        trees[name]["posterior"] |= CASES[name].posterior
    return seed_by_seed(benchmark, trees, dict.fromkeys(trees, (0,)))


@torch.no_grad()
def elbo_of_prior(problem: InverseProblem, count: int = ROLLOUTS) -> float:
    """E[log p(y | x)] under the prior's chain, nats: the ELBO before training."""
    rows = torch.zeros(count, dtype=torch.int64)
    drawn = rollout(problem, None, rows, generator=problem.generator(0))
    return bounds.elbo(drawn.log_weight)


def log_partition_error(run: Finished) -> float:
    """|IW - exact log Z| over what is allowed, 0.1 nats and 1 % of the dimension; nan where log Z is not known."""
    error = abs(run.metrics["eval/iw_log_partition"] - run.metrics["eval/exact_log_partition"])
    return error / (0.1 + 0.01 * dimension(name_of(run)))


def chi_square(run: Finished) -> float:
    """Reduced chi square of the residuals where the truth is from the prior, else nan.

    Of the corrected samples, or as they are drawn where none could be corrected.
    """
    corrected = run.metrics["eval/corrected/reduced_chi2"] if CASES[name_of(run)].from_prior else math.nan
    return chi_square_as_drawn(run) if math.isnan(corrected) else corrected


def chi_square_as_drawn(run: Finished) -> float:
    """The same of the samples as they are drawn."""
    return run.metrics["eval/reduced_chi2"] if CASES[name_of(run)].from_prior else math.nan


def expected_chi_square(run: Finished) -> float:
    """That of exact samples at this measurement, 1 where there are none."""
    known = run.metrics["eval/exact_reduced_chi2"]
    return 1.0 if math.isnan(known) else known


def is_fine(run: Finished, before: float) -> bool:
    """Whether the run keeps all that can be checked of its problem."""
    elbo = run.metrics["eval/elbo"]
    reached = run.metrics["eval/iw_log_partition"] if elbo == -math.inf else elbo  # of an event: see `rare-event`
    risen = not run.diverged and reached > before
    off = abs(chi_square(run) - expected_chi_square(run))
    return risen and not log_partition_error(run) > 1 and not off > CHI_SQUARE  # nan: there is nothing to compare with


def name_of(run: Finished) -> str:
    """The problem's name."""
    return run.name.rsplit("-seed", 1)[0]


def dimension(name: str) -> int:
    """Number of elements of x."""
    return torch.Size(_made(name).event_shape).numel()


@functools.cache
def _made(name: str) -> InverseProblem:
    return make_problem(name, CASES[name].options)


def report(benchmark: Benchmark, names: Sequence[str], subject: str) -> None:
    """Trains the problems `names`, and prints and writes the table and the figures, called by their `subject`."""
    runs = run_all(benchmark, planned(benchmark, names))
    before = {run.name: elbo_of_prior(_made(name_of(run))) for run in runs}
    fine = [is_fine(run, before[run.name]) for run in runs]
    squares, as_drawn = (
        [square for square in map(of, runs) if not math.isnan(square)] for of in (chi_square, chi_square_as_drawn)
    )
    columns = {
        "d": lambda run: dimension(name_of(run)),
        "ELBO before": lambda run: before[run.name],
        "ELBO": lambda run: run.metrics["eval/elbo"],
        "IW": lambda run: run.metrics["eval/iw_log_partition"],
        "exact log Z": lambda run: run.metrics["eval/exact_log_partition"],
        "error / allowed": log_partition_error,
        "ESS": lambda run: run.metrics["eval/effective_sample_size"],
        "chi2 as drawn": chi_square_as_drawn,
        "chi2": chi_square,
        "exact chi2": lambda run: run.metrics["eval/exact_reduced_chi2"],
        "fine": lambda run: float(is_fine(run, before[run.name])),
        "CPU s": lambda run: run.cpu_seconds,
        "wall s": lambda run: run.last("system/seconds"),
        "MiB": lambda run: run.memory / 2**20,
    }
    figures = {
        f"{subject}_ok": float(sum(fine)),
        f"{subject}_total": float(len(names)),
        "chi2_median": statistics.median(squares),
        "chi2_min": min(squares),
        "chi2_max": max(squares),
        "chi2_as_drawn_median": statistics.median(as_drawn),
    }
    finish(benchmark, f"{subject}, all runs", columns, runs, figures)


def main() -> None:
    """Runs the benchmark."""
    report(parse("problems", __doc__ or ""), problem_names(), "problems")


if __name__ == "__main__":
    main()
