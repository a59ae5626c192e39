"""Draws from a posterior with given weights and has it evaluated; writes the report of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actors import rollout
from actors.resample_move import moved, resampled
from actors.rollout import Rollout
from diffusion.posterior import Posterior
from envs import InverseProblem
from evaluation import evaluate
from evaluation.amortised import AmortisedEvaluation, evaluate_amortised
from evaluation.calibration import Calibration, calibrate
from evaluation.evaluation import evaluate_corrected
from evaluation.figures import amortised_picture, bounds_picture, loss_picture, problem_pictures
from evaluation.report import amortised_rows, corrected_rows, summary_rows, write_report
from system.assembly import build_posterior, stream_seed
from system.config import RunConfig
from system.errors import ConfigError
from system.judgement import Draws, Judgement
from system.metrics import read_metrics
from system.notes import calls_spent, doubts, latest
from system.run_directory import RunDirectory, write_text

__all__ = [
    "draw",
    "draw_each",
    "final_report",
    "has_diverged",
    "judge",
    "judge_each",
    "load_posterior",
]

BATCH = 512  # trajectories at once


def load_posterior(config: RunConfig, problem: InverseProblem, weights: NDArray[np.float32]) -> Posterior:
    """The posterior of `config` with the flat vector `weights`."""
    posterior = build_posterior(config, problem).requires_grad_(False)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(weights)), posterior.parameters())
    return posterior.to(problem.device)


def draw(
    problem: InverseProblem,
    posterior: Posterior,
    count: int,
    *,
    seed: int,
    measurement_id: int = 0,
    corrected: int = 0,
) -> Draws:
    """`count` samples under `posterior`, and so many corrected ones."""
    samples, log_weights = [], []

    def parts() -> Iterator[Rollout]:
        for part in _paths(problem, posterior, torch.full((count,), measurement_id), problem.generator(seed)):
            samples.append(part.states[:, -1].cpu())
            log_weights.append(part.log_weight.cpu())
            yield part

    moves = problem.generator(int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0] >> 1))
    found: list[torch.Tensor] = []
    accepted, ancestor = 0.0, None
    with problem.placement(), torch.no_grad():
        if not corrected:
            for _ in parts():
                pass  # what is kept of each is enough
        elif (taken := resampled(parts(), corrected, moves)) is not None:
            paths, ancestor = taken
            for rows in torch.arange(corrected).split(BATCH):
                ends, share = moved(problem, posterior, paths.take(rows), moves)
                found.append(ends.cpu())
                accepted += share * len(rows) / corrected
    return Draws(
        samples=torch.cat(samples),
        log_weight=torch.cat(log_weights),
        corrected=torch.cat(found) if found else None,
        ancestor=ancestor,
        accepted=accepted,
    )


def judge(
    config: RunConfig,
    problem: InverseProblem,
    weights: NDArray[np.float32],
    *,
    quick: bool,
    measurement_id: int = 0,
) -> Judgement:
    """The posterior with `weights`, on one measurement; `quick`: while it trains."""
    settings, posterior = config.evaluation, load_posterior(config, problem, weights)
    count = settings.trajectories if quick else settings.final_trajectories
    corrected = 0 if quick else min(settings.corrected, count)
    seed = stream_seed(config, "evaluation", int(quick))
    draws = draw(problem, posterior, count, seed=seed, measurement_id=measurement_id, corrected=corrected)
    evaluation = evaluate(problem, measurement_id, draws.samples, draws.log_weight, posterior, seed=seed, quick=quick)
    correction = None
    if draws.corrected is not None and draws.ancestor is not None:
        ancestors = len(draws.ancestor.unique())
        correction = evaluate_corrected(
            problem, measurement_id, draws.corrected, ancestors=ancestors, accepted=draws.accepted, seed=seed
        )
    return Judgement(evaluation=evaluation, draws=draws, correction=correction)


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
    with problem.placement():
        drawn = [
            (part.states[:, -1].cpu(), part.log_weight.cpu())
            for part in _paths(problem, posterior, rows, problem.generator(seed))
        ]
    samples, log_weights = zip(*drawn, strict=True)
    return torch.cat(samples), torch.cat(log_weights)


def _paths(
    problem: InverseProblem, posterior: Posterior, rows: torch.Tensor, generator: torch.Generator
) -> Iterator[Rollout]:
    """A path for each of the measurements `rows` [N], in parts."""
    for part in rows.split(BATCH):
        yield rollout(problem, posterior.control, part, generator=generator, guided=posterior.uses_guidance)


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
    judgement: Judgement,
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
    evaluation = judgement.evaluation
    metrics = judgement.as_metrics() | {"eval/prior_elbo": float(started.log_likelihood.double().mean())}
    notes = [*notes, *calls_spent(config, problem, history), *doubts(problem, judgement, history, measurement_id)]
    if config.evaluation.corrected and judgement.correction is None:
        notes.append("no path has any weight, so there are no corrected samples")
    # Without an update q is what it began with, and its ELBO beside the prior's is sampling noise.
    diverged = bool(latest(history, "learner/updates")) and has_diverged(metrics)
    if diverged:
        notes.insert(0, "DIVERGED: the posterior is worse than the prior that training began with, or not a number")
    pictures = [
        *problem_pictures(problem, measurement_id, prior, judgement.draws.samples.float(), evaluation),
        amortised_picture(each, calibration),
        bounds_picture(history, evaluation.exact_log_partition),
        loss_picture(history),
    ]
    shown = [picture for picture in pictures if picture is not None]
    for picture in shown:
        (run.figures / f"{picture.name}.png").write_bytes(picture.png)
    rows = (*summary_rows(evaluation), *corrected_rows(judgement.correction), *amortised_rows(each, calibration))
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
    silent = {"eval/prior_elbo"} | {key for key in metrics if key.startswith("eval/corrected/")}
    if metrics["eval/prior_elbo"] == -math.inf:
        silent |= {"eval/elbo", "eval/elbo_standard_error", "eval/gap"}
    numbers = {key: value for key, value in metrics.items() if key not in silent}
    return not all(math.isfinite(value) for value in numbers.values()) or (
        metrics["eval/elbo"] < metrics["eval/prior_elbo"]
    )
