"""log Z where it is known exactly: real images in 784 dimensions, a field in 10,000, rare events.

Each case is trained as it ships for a stated processor time and asked for the evidence by importance weights, IW. What
is allowed is 0.1 nats and 1 % of the dimension d.

The exact log Z is that of p(x), and the chain has its own. For the Gaussian field that is known too
(`chain_log_partition`); for the events, whose prior is isotropic, it is the same. For a kernel density the table has
`discretisation`, KL(noised exact samples of the posterior || chain), as the measure of how far the chain is from p(x).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Finished, Planned, finish, parse, run_all, seed_by_seed, shortened
from diffusion.field_denoiser import FieldDenoiser, hartley
from envs import InverseProblem, make_problem
from envs.likelihoods import GaussianLikelihood
from envs.operators import Convolution

CONFIGS = Path("configs/experiments")
SHORT_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem, and how it is trained and judged."""

    config: str
    """File under configs/experiments."""
    options: Mapping[str, Any]
    """Of the problem, beside those of the file."""
    seconds: float
    """Processor time of training; that of the last evaluation comes to it."""
    paths: int
    """Paths behind IW and ELBO."""
    seeds: tuple[int, ...] = (0, 1, 2)
    short: bool = True
    """Whether the short form has it."""


IMAGE = {"prior": "mnist-kde", "noise_std": 0.3}
CASES = {
    "mnist-inpainting": Case(
        config="image_simulated", options={"name": "image-inpainting", **IMAGE}, seconds=90, paths=64, short=False
    ),
    "mnist-deblurring": Case(
        config="image_simulated", options={"name": "image-deblurring", **IMAGE}, seconds=90, paths=64, short=False
    ),
    "digits-inpainting": Case(config="image", options={"name": "image-inpainting"}, seconds=45, paths=4_096),
    "digits-deblurring": Case(config="image", options={"name": "image-deblurring"}, seconds=45, paths=4_096),
    "gaussian-field-10000": Case(config="gaussian_field", options={"size": 100}, seconds=45, paths=128),
    **{
        f"{limit_state}-level{level}": Case(
            config="rare_event", options={"limit_state": limit_state, "level": level}, seconds=30, paths=4_096
        )
        for limit_state in ("linear", "four-branch")
        for level in (3.0, 4.0)
    },
}


def planned(benchmark: Benchmark) -> list[Planned]:
    """One run of every case and seed."""
    cases = {name: case for name, case in CASES.items() if case.short or not benchmark.short}
    trees = {}
    for name, case in cases.items():
        seconds = min(case.seconds, SHORT_SECONDS) if benchmark.short else case.seconds
        trees[name] = shortened(CONFIGS / f"{case.config}.yaml", case.options, seconds)
        trees[name]["evaluation"]["final_trajectories"] = case.paths
    return seed_by_seed(benchmark, trees, {name: case.seeds for name, case in cases.items()})


def chain_log_partition(problem: InverseProblem) -> float:
    """Log p(y) under the chain of a Gaussian field, nats; nan for other problems.

    Every frequency is a chain of one number, s_k+1 = (a_k + b_k x^'(s_k)) s_k + std_k noise, of which the variance
    follows by recursion, and y_f ~ N(0, |K|^2 Var(x_f) + sigma^2).
    """
    prior, likelihood = problem.prior, problem.likelihood
    field = prior.denoiser
    if not isinstance(field, FieldDenoiser) or not isinstance(likelihood, GaussianLikelihood):
        return math.nan
    assert isinstance(likelihood.operator, Convolution) and isinstance(likelihood.noise_std, float)
    power, variance = field.power, prior.sigma[0].square().expand_as(field.power)
    for index in range(prior.num_steps):
        alpha, noise = prior.alpha[index], prior.sigma[index].square()
        slope = alpha * power / (alpha.square() * power + noise)
        gain = prior.state_coefficient[index] + prior.denoised_coefficient[index] * slope
        variance = gain.square() * variance + prior.std[index].square()
    seen = hartley(problem.measurements[0].double())[0]
    transfer = likelihood.operator.spectrum().values.reshape(power.shape)
    evidence = transfer * variance + likelihood.noise_std**2
    return float(-0.5 * (seen.square() / evidence + evidence.log() + math.log(2 * math.pi)).sum())


def case_of(run: Finished) -> str:
    """The name in CASES."""
    return run.name.rsplit("-seed", 1)[0]


@functools.cache
def _made(name: str) -> InverseProblem:
    case = CASES[name]
    options = {key: value for key, value in case.options.items() if key != "name"}
    return make_problem(str(case.options.get("name", case.config.replace("_", "-"))), options)


def dimension(name: str) -> int:
    """Number of elements of x."""
    if name.startswith("mnist"):
        return 784  # the kernel density takes long to make
    return math.prod(_made(name).event_shape)


def metric(key: str) -> Callable[[Finished], float]:
    """The number `key` of the last evaluation."""
    return lambda run: run.metrics[f"eval/{key}"]


def error(run: Finished) -> float:
    """|IW - exact log Z|, nats."""
    return abs(run.metrics["eval/iw_log_partition"] - run.metrics["eval/exact_log_partition"])


def allowed(run: Finished) -> float:
    """0.1 nats and 1 % of the dimension."""
    return 0.1 + 0.01 * dimension(case_of(run))


def chain(run: Finished) -> float:
    """The chain's own log Z, nats; nan where it is not known."""
    name = case_of(run)
    if CASES[name].config == "rare_event":
        return run.metrics["eval/exact_log_partition"]
    return chain_log_partition(_made(name)) if CASES[name].config == "gaussian_field" else math.nan


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("exact_evidence", __doc__ or "")
    runs = run_all(benchmark, planned(benchmark))
    columns: dict[str, Callable[[Finished], float]] = {
        "d": lambda run: dimension(case_of(run)),
        "ELBO": metric("elbo"),
        "IW": metric("iw_log_partition"),
        "its standard error": metric("iw_standard_error"),
        "exact log Z": metric("exact_log_partition"),
        "chain's log Z": chain,
        "discretisation": metric("discretisation"),
        "error": error,
        "allowed": allowed,
        "ESS": metric("effective_sample_size"),
        "chi2": metric("reduced_chi2"),
        "exact chi2": metric("exact_reduced_chi2"),
        "CPU s": lambda run: run.cpu_seconds,
    }
    figures = {"ok": float(sum(error(run) <= allowed(run) for run in runs)), "runs": float(len(runs))}
    for name in dict.fromkeys(map(case_of, runs)):
        figures[f"{name.replace('-', '_')}_error"] = max(error(run) for run in runs if case_of(run) == name)
    finish(benchmark, "exact evidence, all runs", columns, runs, figures)


if __name__ == "__main__":
    main()
