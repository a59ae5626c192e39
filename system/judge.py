"""Draws from a posterior with given weights and has it evaluated; writes the report of a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors import rollout
from actors.resample_move import moved, resampled
from actors.rollout import Rollout
from diffusion.posterior import Posterior
from envs import InverseProblem
from evaluation import Evaluation, evaluate
from evaluation.amortised import AmortisedEvaluation, evaluate_amortised
from evaluation.calibration import Calibration, calibrate
from evaluation.evaluation import Correction, evaluate_corrected
from evaluation.figures import amortised_picture, bounds_picture, loss_picture, problem_pictures
from evaluation.figures.history import History
from evaluation.report import amortised_rows, corrected_rows, summary_rows, write_report
from system.assembly import build_posterior, stream_seed
from system.config import RunConfig
from system.errors import ConfigError
from system.metrics import read_metrics
from system.run_directory import RunDirectory, write_text
from system.runner import only_impossible

__all__ = [
    "Draws",
    "Judgement",
    "draw",
    "draw_each",
    "final_report",
    "has_diverged",
    "judge",
    "judge_each",
    "load_posterior",
]

BATCH = 512  # trajectories at once
MISFIT = 6.0  # standard deviations of χ² beyond which the report warns
LOW_ESS, FEW_PATHS = 0.01, 10  # fraction of the paths, and number of them, below which the report warns


def load_posterior(config: RunConfig, problem: InverseProblem, weights: NDArray[np.float32]) -> Posterior:
    """The posterior of `config` with the flat vector `weights`."""
    posterior = build_posterior(config, problem).requires_grad_(False)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(weights)), posterior.parameters())
    return posterior.to(problem.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Samples of x given one measurement."""

    samples: torch.Tensor
    """[N, *D] as the posterior draws them."""
    log_weight: torch.Tensor
    """[N] float64, the log importance weights of their paths."""
    corrected: torch.Tensor | None = None
    """[M, *D] of the chain's posterior (`actors.resample_move`), where they were asked for and any path has weight."""
    ancestor: torch.Tensor | None = None
    """[M] int64, the number among `samples` of the one that each of these was made of."""
    accepted: float = 0.0
    """Share of the proposed suffixes that was accepted while they were moved."""

    def save(self, path: Path) -> None:
        """Writes them to an npz file without pickles."""
        arrays: dict[str, Any] = {"samples": self.samples.float().numpy(), "log_weight": self.log_weight.numpy()}
        if self.corrected is not None:
            assert self.ancestor is not None
            arrays |= {"corrected": self.corrected.float().numpy(), "ancestor": self.ancestor.numpy()}
        np.savez_compressed(path, **arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What an evaluation found."""

    evaluation: Evaluation
    """Of the samples as they are drawn."""
    draws: Draws
    """The samples."""
    correction: Correction | None = None
    """Of those that were corrected."""

    def as_metrics(self) -> dict[str, float]:
        """All its numbers."""
        return self.evaluation.as_metrics() | ({} if self.correction is None else self.correction.as_metrics())


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
    notes = [*notes, *_calls_spent(config, problem, history), *_doubts(problem, judgement, history, measurement_id)]
    if config.evaluation.corrected and judgement.correction is None:
        notes.append("no path has any weight, so there are no corrected samples")
    # Without an update q is what it began with, and its ELBO beside the prior's is sampling noise.
    diverged = bool(_newest(history, "learner/updates")) and has_diverged(metrics)
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


def _doubts(problem: InverseProblem, judgement: Judgement, history: History, measurement_id: int) -> list[str]:
    """Sentences about what should keep the reader from taking the numbers at face value."""
    newest = functools.partial(_newest, history)
    notes, evaluation = [], judgement.evaluation
    ess = evaluation.effective_sample_size
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
    unknown = int(judgement.draws.log_weight.isnan().sum())
    if unknown:
        notes.append(
            f"the likelihood of {unknown} of {evaluation.count} final paths is not a number, so neither is the "
            "evidence: training sets such x aside, a judgement cannot"
        )
    notes += _misfit(problem, judgement)
    if ess < LOW_ESS or ess * evaluation.count < FEW_PATHS:
        corrected = (
            ", nor the shares of modes among corrected samples, which come from about as many"
            if judgement.correction is not None
            else ""
        )
        notes.append(
            f"an effective sample size of {100 * ess:.2g} % is that of {ess * evaluation.count:.1f} paths: neither log "
            f"Z nor its error can be trusted{corrected}"
        )
    return notes


def _misfit(problem: InverseProblem, judgement: Judgement) -> list[str]:
    judged = judgement.evaluation if judgement.correction is None else judgement.correction
    exact = judgement.evaluation.exact_reduced_chi2
    count = problem.measurements[0].numel()
    chance = MISFIT * math.sqrt(2 / count)  # of noise alone, in standard deviations
    if judged.reduced_chi2 is None or not judged.reduced_chi2 > (1 if exact is None else exact) + chance:
        return []
    return [
        f"a reduced χ² of {judged.reduced_chi2:.2g} for y of {count} numbers: the samples miss y by more than its "
        "noise; "
        + ("train longer" if exact is not None else "train longer, or doubt the noise, the units or the prior")
    ]


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"
