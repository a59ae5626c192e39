"""Draws from a posterior with given weights and has it evaluated; writes the report of a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actors import rollout
from diffusion.posterior import Posterior
from envs import InverseProblem
from evaluation import Evaluation, evaluate
from evaluation.amortised import AmortisedEvaluation, evaluate_amortised
from evaluation.calibration import Calibration, calibrate
from evaluation.figures import amortised_picture, bounds_picture, loss_picture, problem_pictures
from evaluation.figures.history import History
from evaluation.report import amortised_rows, summary_rows, write_report
from system.assembly import build_posterior, stream_seed
from system.config import RunConfig
from system.errors import ConfigError
from system.metrics import read_metrics
from system.run_directory import RunDirectory, write_text
from system.runner import only_impossible

__all__ = ["draw", "draw_each", "final_report", "has_diverged", "judge", "judge_each", "load_posterior"]

BATCH = 512  # trajectories at once
LOW_ESS = 0.01  # fraction below which the report warns


def load_posterior(config: RunConfig, problem: InverseProblem, weights: NDArray[np.float32]) -> Posterior:
    """The posterior of `config` with the flat vector `weights`."""
    posterior = build_posterior(config, problem).requires_grad_(False)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(weights)), posterior.parameters())
    return posterior.to(problem.device)


def draw(
    problem: InverseProblem, posterior: Posterior, count: int, *, seed: int, measurement_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples [count, *D], log importance weight of their paths [count] float64) under `posterior`."""
    return _draw_rows(problem, posterior, torch.full((count,), measurement_id), seed)


def judge(
    config: RunConfig,
    problem: InverseProblem,
    weights: NDArray[np.float32],
    *,
    quick: bool,
    measurement_id: int = 0,
) -> tuple[Evaluation, NDArray[np.float32], NDArray[np.float64]]:
    """(evaluation, samples [N, *D], log weights [N]) of the posterior with `weights`, on one measurement."""
    posterior = load_posterior(config, problem, weights)
    count = config.evaluation.trajectories if quick else config.evaluation.final_trajectories
    seed = stream_seed(config, "evaluation", int(quick))
    samples, log_weight = draw(problem, posterior, count, seed=seed, measurement_id=measurement_id)
    evaluation = evaluate(problem, measurement_id, samples, log_weight, posterior, seed=seed, quick=quick)
    return evaluation, samples.float().numpy(), log_weight.numpy()


def draw_each(
    problem: InverseProblem, posterior: Posterior, count: int, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples [M, count, *D], log weights [M, count] float64) under `posterior` at each of the measurements."""
    number = len(problem.measurements)
    samples, log_weight = _draw_rows(problem, posterior, torch.arange(number).repeat_interleave(count), seed)
    return samples.reshape(number, count, *problem.event_shape), log_weight.reshape(number, count)


def _draw_rows(
    problem: InverseProblem, posterior: Posterior, rows: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples [N, *D], log weights [N] float64), one for each of the measurements `rows` [N]."""
    generator, samples, log_weights = problem.generator(seed), [], []
    with problem.placement():
        for part in rows.split(BATCH):
            batch = rollout(problem, posterior.control, part, generator=generator, guided=posterior.uses_guidance)
            samples.append(batch.states[:, -1])
            log_weights.append(batch.log_weight)
    return torch.cat(samples).cpu(), torch.cat(log_weights).cpu()


def judge_each(
    config: RunConfig, problem: InverseProblem, weights: NDArray[np.float32]
) -> tuple[AmortisedEvaluation | None, Calibration | None]:
    """The posterior at each measurement, where there are several, and its calibration over simulated pairs, if asked.

    Raises:
        ConfigError: calibration is asked for, but the likelihood cannot be simulated, or the posterior does not see y.
    """
    settings, posterior = config.evaluation, load_posterior(config, problem, weights)
    each = calibration = None
    if len(problem.measurements) > 1:
        seed = stream_seed(config, "evaluation of each")
        drawn = draw_each(problem, posterior, settings.per_measurement, seed=seed)
        each = evaluate_amortised(problem, *drawn, seed=seed)
    if settings.calibration_pairs:
        if not (problem.simulable and posterior.sees_measurement):
            raise ConfigError(
                "evaluation.calibration_pairs needs a likelihood that measurements can be drawn from, and a posterior "
                "that sees them; set it to 0"
            )
        generator = problem.generator(stream_seed(config, "calibration"))
        rows = torch.zeros(settings.calibration_pairs, dtype=torch.int64)
        with problem.placement():
            parts = [rollout(problem, None, part, generator=generator).states[:, -1] for part in rows.split(BATCH)]
            truth = torch.cat(parts)
            measurement = problem.simulate(truth, generator)
        seed = stream_seed(config, "calibration of each")
        samples, _ = draw_each(problem.at(measurement), posterior, settings.calibration_trajectories, seed=seed)
        calibration = calibrate(samples, truth.cpu(), measurement.cpu())
    return each, calibration


def final_report(
    config: RunConfig,
    problem: InverseProblem,
    run: RunDirectory,
    evaluation: Evaluation,
    samples: NDArray[np.float32],
    notes: Sequence[str] = (),
    *,
    measurement_id: int = 0,
    each: AmortisedEvaluation | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Writes report.html, its figures, and the same numbers as results.json; `each` and `calibration`: `judge_each`."""
    generator = problem.generator(stream_seed(config, "prior samples"))
    with problem.placement():
        count = min(BATCH, config.evaluation.final_trajectories)
        started = rollout(problem, None, torch.full((count,), measurement_id), generator=generator)
    prior, history = started.states[:, -1].cpu(), read_metrics(run.metrics)
    metrics = evaluation.as_metrics() | {"eval/prior_elbo": float(started.log_likelihood.double().mean())}
    notes = [*notes, *_calls_spent(config, problem, history), *_doubts(problem, evaluation, history, measurement_id)]
    # Without an update q is what it began with, and its ELBO beside the prior's is sampling noise.
    diverged = bool(_newest(history, "learner/updates")) and has_diverged(metrics)
    if diverged:
        notes.insert(0, "DIVERGED: the posterior is worse than the prior that training began with, or not a number")
    pictures = [
        *problem_pictures(problem, measurement_id, prior, torch.from_numpy(samples), evaluation),
        amortised_picture(each, calibration),
        bounds_picture(history, evaluation.exact_log_partition),
        loss_picture(history),
    ]
    shown = [picture for picture in pictures if picture is not None]
    for picture in shown:
        (run.figures / f"{picture.name}.png").write_bytes(picture.png)
    rows = (*summary_rows(evaluation), *amortised_rows(each, calibration))
    if each is not None:
        metrics |= {f"eval/each/{name}": value for name, value in each.summary().items() if math.isfinite(value)}
    if calibration is not None:
        metrics["eval/calibration_deviation"] = calibration.deviation
    title = f"{config.problem.name}: learned posterior"
    write_report(run.report, title, rows, shown, config.to_yaml(), list(notes), run.path.name)
    summary = [dataclasses.asdict(row) for row in rows]
    results = {"summary": summary, "metrics": metrics, "notes": notes, "diverged": diverged}
    write_text(run.results, json.dumps(results, indent=1) + "\n")


def has_diverged(metrics: Mapping[str, float]) -> bool:
    """Whether the last evaluation is that of a run that diverged.

    A number is not finite, or the ELBO is below that of the prior, which is where training begins. A run that the guard
    ended has diverged too, and has no evaluation. Of a likelihood that is zero on paths of the prior the ELBO is minus
    infinity for any posterior that strays there at all, and says nothing.
    """
    silent = {"eval/prior_elbo"}
    if metrics["eval/prior_elbo"] == -math.inf:
        silent |= {"eval/elbo", "eval/elbo_standard_error", "eval/gap"}
    numbers = {key: value for key, value in metrics.items() if key not in silent}
    return not all(math.isfinite(value) for value in numbers.values()) or (
        metrics["eval/elbo"] < metrics["eval/prior_elbo"]
    )


def _calls_spent(config: RunConfig, problem: InverseProblem, history: History) -> list[str]:
    """What the run took in likelihood calls, where it has a budget of them; `problem` has counted the judge's."""
    if config.max_likelihood_calls is None or "system/likelihood_calls" not in history:
        return []
    calls = history["system/likelihood_calls"][2][-1]
    return [
        f"training took {calls:,.0f} likelihood calls (max_likelihood_calls: {config.max_likelihood_calls:,}), "
        f"evaluations and this report {problem.calls.count:,} more"
    ]


def _newest(history: History, key: str) -> float:
    return float(history[key][2][-1]) if key in history and len(history[key][2]) else 0.0


def _doubts(problem: InverseProblem, evaluation: Evaluation, history: History, measurement_id: int) -> list[str]:
    """Sentences about what should keep the reader from taking the numbers at face value."""
    newest = functools.partial(_newest, history)
    notes, ess = [], evaluation.effective_sample_size
    if len(problem.measurements) > 1:
        notes.append(
            f"all this is for measurement {measurement_id} of 0..{len(problem.measurements) - 1}; "
            "`rtb evaluate RUN --measurement N` judges another"
        )
    if not newest("learner/updates"):
        notes.append(
            "the run ended before its first update: what is shown is the prior, its guide (initial_gain) "
            "or the run that `init` names"
        )
    nothing = only_impossible({key: newest(key) for key in history})
    if nothing is not None:
        notes.append(nothing)
    if newest("learner/set_aside"):
        notes.append(
            f"the guard set {newest('learner/set_aside'):.0f} of {newest('learner/updates'):.0f} batches aside and "
            f"rolled back {_times(newest('learner/rollbacks'))}: lower learner.learning_rate, or look at the "
            "likelihood"
        )
    if newest("learner/reinitialised"):
        notes.append(f"the network was re-initialised {_times(newest('learner/reinitialised'))}, as configured")
    if "learner/beta" in history and newest("learner/beta") < 1:
        notes.append(
            f"beta ended at {newest('learner/beta'):.2f}, so this is the posterior of a tempered likelihood: give the "
            "run more updates, or lower learner.beta_until or learner.beta_ess"
        )
    if newest("replay/refused"):
        notes.append(f"{newest('replay/refused'):.0f} trajectories were refused, as a number in them was not finite")
    if ess < LOW_ESS:
        notes.append(
            f"an effective sample size of {100 * ess:.2g} % is {ess * evaluation.count:.0f} paths: neither log Z nor "
            "its error can be trusted"
        )
    return notes


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"
