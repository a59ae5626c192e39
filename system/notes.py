"""Notes of a report: what should keep its reader from taking the numbers at face value."""

from __future__ import annotations

import functools
import math

from envs import InverseProblem
from evaluation.figures.history import History
from system.config import RunConfig
from system.judgement import Judgement
from system.runner import only_impossible

__all__ = ["calls_spent", "doubts", "latest"]

MISFIT = 6.0  # standard deviations of χ² beyond which the report warns
LOW_ESS, FEW_PATHS = 0.01, 10  # fraction of the paths, and number of them, below which the report warns


def calls_spent(config: RunConfig, problem: InverseProblem, history: History) -> list[str]:
    """What the run took in likelihood calls, where it has a budget of them; `problem` has counted the judge's."""
    if config.max_likelihood_calls is None or "system/likelihood_calls" not in history:
        return []
    calls = history["system/likelihood_calls"][2][-1]
    return [
        f"training took {calls:,.0f} likelihood calls (max_likelihood_calls: {config.max_likelihood_calls:,}), "
        f"evaluations and this report {problem.calls.count:,} more"
    ]


def doubts(problem: InverseProblem, judgement: Judgement, history: History, measurement_id: int) -> list[str]:
    """Sentences about what should keep the reader from taking the numbers at face value."""
    newest = functools.partial(latest, history)
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
            ", nor means, widths and shares of modes of corrected samples, which come from about as many; draw more "
            "paths with `rtb sample RUN --num N --corrected M`"
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


def latest(history: History, key: str) -> float:
    """The last value of a metric, 0 where there is none."""
    return float(history[key][2][-1]) if key in history and len(history[key][2]) else 0.0


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"
