"""One run from start to report: the loop that trains, evaluates, saves and shows, on either runner."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from envs import InverseProblem
from envs.asked import LikelihoodCalls
from envs.likelihoods import LikelihoodError
from envs.time_limit import LikelihoodTimeout
from system.assembly import build_problem, on_device_at_hand
from system.checkpoint import Checkpoint, CheckpointStore
from system.config import RunConfig
from system.config_file import config_from_tree, load_config
from system.errors import ConfigError, RunnerError, UserError
from system.exact import ExactConfig, ExactSamples, sample_exactly
from system.init import write_init
from system.judge import draw, final_report, judge, judge_each, load_posterior
from system.loop import require_same, terminated_is_interrupted, train_to_the_end, way_on
from system.measurement import measured, unlike_simulated
from system.metrics import MetricsWriter, read_metrics
from system.progress import Progress
from system.run_directory import RunDirectory, write_text
from system.runner import Runner
from system.train_prior import is_prior_run, prior_of

__all__ = [
    "closing_lines",
    "ended_diverged",
    "evaluate_run",
    "make_runner",
    "open_run",
    "resume",
    "sample",
    "sample_exact",
    "train",
    "tuning_config",
]

_log = logging.getLogger(__name__)


@contextmanager
def _likelihood_may_fail() -> Iterator[None]:
    """Makes a likelihood that was given up, or gives no density, an error of one line; also a decorator."""
    try:
        yield
    except (LikelihoodTimeout, LikelihoodError) as error:
        raise RunnerError(str(error)) from error


def train(config: RunConfig, directory: Path | None = None, *, quiet: bool = False) -> RunDirectory:
    """Trains `config` in a new run directory (`runs/<name>-<n>` if None) and writes the report."""
    problem = build_problem(config)
    _doubt_measurement(config, problem)
    run = RunDirectory.create(directory, config.name)
    write_text(run.config, config.to_yaml())
    try:
        _train(_with_own_files(config, problem, run), problem, run, None, quiet)
    except UserError:
        run.discard_unless_begun()
        raise
    return run


@_likelihood_may_fail()
def _doubt_measurement(config: RunConfig, problem: InverseProblem) -> None:
    """Warns of a measurement from a file that is unlike simulated ones.

    Where calls are budgeted none is spent on it.
    """
    if config.measurement is None or config.max_likelihood_calls is not None:
        return
    doubt = unlike_simulated(problem, problem.measurements[0].cpu())
    if doubt is not None:
        sys.stderr.write(f"rtb: warning: {doubt}\n")


def _with_own_files(config: RunConfig, problem: InverseProblem, run: RunDirectory) -> RunConfig:
    """Copies what `config` takes from elsewhere into `run`, which all processes see; the configuration that says so."""
    if config.measurement is not None:
        np.save(run.measurement, problem.measurements[0].cpu().numpy())
    if config.init is not None:
        _, source, its_problem, weights = _trained(Path(config.init))
        _same_guide(config, source, problem)
        write_init(run.init, load_posterior(source, its_problem, weights))
    return _its_own_files(config, run)


def _same_guide(config: RunConfig, source: RunConfig, problem: InverseProblem) -> None:
    """Refuses weights that were trained with another guide, though they may fit: they would mean something else."""
    ours, theirs = config.posterior, source.posterior
    if ours.form != "control" or theirs.form != "control" or problem.gradient is None:
        return
    if ours.likelihood_gradient != theirs.likelihood_gradient:
        raise ConfigError(
            f"init: the posterior of {config.init} has posterior.likelihood_gradient {theirs.likelihood_gradient}, and "
            f"this configuration {ours.likelihood_gradient}: its weights would be given other features; take the run's "
            "own section posterior"
        )


def _its_own_files(config: RunConfig, run: RunDirectory) -> RunConfig:
    """`config` with the copies in `run` for the files it was given."""
    measurement = str(run.measurement.resolve()) if run.measurement.is_file() else config.measurement
    init = str(run.init.resolve()) if run.init.is_file() else config.init
    return replace(config, measurement=measurement, init=init)


def resume(directory: Path, *, cluster: str | None = None, quiet: bool = False) -> RunDirectory:
    """Goes on with the run in `directory` from its newest sound checkpoint.

    Raises:
        ConfigError: the run's configuration is not the one its checkpoint was made with.
        CheckpointError: there is no sound checkpoint.
    """
    run, config = open_run(directory, cluster=cluster)
    checkpoint = CheckpointStore(run.checkpoints, config.checkpoint.keep).load()
    _same_config(config, checkpoint)
    _train(config, build_problem(config), run, checkpoint, quiet)
    return run


def open_run(directory: Path, *, cluster: str | None = None) -> tuple[RunDirectory, RunConfig]:
    """The run in `directory` and its configuration, with the address of another cluster where given."""
    run = RunDirectory.open(directory)
    if is_prior_run(directory):
        raise ConfigError(
            f"{directory} is a run of `rtb prior train`, which trains a prior and no posterior: `rtb prior inspect "
            f"{prior_of(run)}` shows it, `rtb resume {directory}` goes on with it"
        )
    config = load_config(run.config, [] if cluster is None else ["--ray.address", cluster])
    if cluster is not None and config.runner != "ray":
        raise ConfigError(f"--cluster needs a run of the ray runner, but {directory} is one of the local runner")
    return run, _its_own_files(config, run)


def tuning_config(directory: Path) -> RunConfig:
    """The configuration for going on from the run in `directory` at one measurement: `RunConfig.fine_tuning`."""
    _, config = open_run(directory)
    try:
        return config.fine_tuning(str(directory))
    except ValueError as error:
        raise ConfigError(f"the configuration of {directory} cannot be taken for one measurement: {error}") from None


def make_runner(config: RunConfig, problem: InverseProblem, run: RunDirectory) -> Runner:
    """The runner that `config` asks for."""
    if config.runner == "local":
        from system.local import LocalRunner

        return LocalRunner(config, problem)
    try:
        import ray  # noqa: F401
    except ImportError:
        raise RunnerError(
            "runner is 'ray', but Ray is not installed here; install ray[default] or use --runner local"
        ) from None
    from system.distributed.runner import RayRunner

    return RayRunner(config, problem, run.path)


@terminated_is_interrupted()
@_likelihood_may_fail()
def _train(
    config: RunConfig, problem: InverseProblem, run: RunDirectory, checkpoint: Checkpoint | None, quiet: bool
) -> None:
    torch.set_num_threads(1)  # processes share the cores; more threads each are many times slower
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
    notes = list(checkpoint.warnings) if checkpoint else []
    runner = make_runner(config, problem, run)
    resumed_at = None if checkpoint is None else checkpoint.step
    title = f"{config.problem.name} - {config.runner} runner - {run.path}"
    budget = {"budget_seconds": config.max_seconds, "budget_updates": config.updates}
    budget["budget_calls"] = config.max_likelihood_calls
    judged = replace(problem, calls=LikelihoodCalls(_judge_calls(run)))

    def validate() -> dict[str, float]:
        metrics = judge(config, judged, runner.weights(), quick=True).as_metrics()
        return metrics | {"system/judge_calls": float(judged.calls.count)}

    try:
        try:
            with MetricsWriter(run, resumed_at) as writer, Progress(title, **budget, quiet=quiet) as progress:  # type: ignore[arg-type]
                if checkpoint is not None:
                    runner.load(checkpoint.parts)
                    for line in checkpoint.warnings:
                        progress.warn(line)
                train_to_the_end(
                    runner,
                    store,
                    writer,
                    progress,
                    validate=validate,
                    validation_seconds=config.evaluation.interval_seconds,
                    checkpoint_seconds=config.checkpoint.interval_seconds,
                )
            if not quiet:
                sys.stdout.write(_evaluating(config))
                sys.stdout.flush()
            judgement = judge(config, judged, runner.weights(), quick=False)
            each, calibration = judge_each(config, judged, runner.weights())
        finally:
            runner.close()
        judgement.draws.save(run.samples)
        final_report(config, judged, run, judgement, notes, each=each, calibration=calibration)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(way_on(run, store)) from None


def _evaluating(config: RunConfig) -> str:
    """What the last evaluation does, a line: it may take longer than the training."""
    settings = config.evaluation
    corrected = f", of which {min(settings.corrected, settings.final_trajectories):,} are corrected"
    return f"evaluating {settings.final_trajectories:,} paths{corrected if settings.corrected else ''}\n"


def _judge_calls(run: RunDirectory) -> int:
    """Calls of the likelihood that evaluations of a run have made before it is resumed."""
    counted = read_metrics(run.metrics).get("system/judge_calls") if run.metrics.exists() else None
    return 0 if counted is None else int(counted[2][-1])


_PROCESSES = ("num_actors", "num_shards", "num_learners", "shard_weights", "cpus_per_actor", "cpus_per_learner")
_MAY_DIFFER = (
    "device",
    *(f"ray.{key}" for key in ("address", *_PROCESSES, "gpus_per_actor", "gpus_per_learner")),
    *("measurement", "init"),  # which are copied
)


def _same_config(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint of another configuration; where the run is, and on how many processes, may differ."""
    saved = config_from_tree(yaml.safe_load(checkpoint.parts["run"].scalars["config"]), "checkpoint")
    ours, theirs = (yaml.safe_load(value.to_yaml()) for value in (config, saved))
    require_same(ours, theirs, "rtb train", _MAY_DIFFER)


@_likelihood_may_fail()
def sample(
    directory: Path,
    count: int,
    seed: int,
    output: Path | None,
    measurement: int | Path = 0,
    *,
    corrected: int = 0,
) -> Path:
    """Draws `count` samples of x given one measurement from the newest checkpoint of a run into an npz file.

    `measurement` is a row of the problem's, or a file with another one; so many are `corrected` as well.
    """
    if count < 1:
        raise ConfigError(f"--num must be at least 1, got {count}")
    if corrected < 0:
        raise ConfigError(f"--corrected must be at least 0, got {corrected}")
    _check_output(output)
    run, config, problem, weights = _trained(directory)
    posterior = load_posterior(config, problem, weights)
    problem, row = measured(problem, measurement, config, posterior)
    path = run.samples if output is None else output
    draw(problem, posterior, count, seed=seed, measurement_id=row, corrected=corrected).save(path)
    return path


@_likelihood_may_fail()
def sample_exact(
    source: Path,
    overrides: Sequence[str],
    config: ExactConfig,
    output: Path | None = None,
    measurement: int | Path = 0,
    *,
    quiet: bool = False,
) -> tuple[Path, ExactSamples]:
    """Samples the posterior of one measurement by path-space search into an npz file; (file, result).

    `source` is a run, whose posterior then proposes beside the prior, or a configuration (with `overrides`), whose
    problem is taken.
    """
    torch.set_num_threads(1)
    _check_output(output)
    control = None
    if source.is_dir():
        run, settings, problem, weights = _trained(source)
        posterior = load_posterior(settings, problem, weights)
        control, path = posterior.control, run.path / "exact.npz"
    elif config.start == "posterior":
        raise ConfigError(f"--start posterior takes that of a trained run, got the configuration {source}")
    else:
        settings = load_config(source, list(overrides))
        problem, path = build_problem(settings), Path(f"{settings.name}-exact.npz")
    path = path if output is None else output
    with Progress(f"{problem.name} - exact sampler", quiet=quiet) as progress:
        problem, row = measured(problem, measurement)
        result = sample_exactly(problem, row, config, control=control, progress=progress.update)
    np.savez_compressed(path, allow_pickle=False, **result.arrays())
    write_text(path.with_suffix(".json"), json.dumps(result.figures(), indent=1) + "\n")
    return path, result


@_likelihood_may_fail()
def evaluate_run(directory: Path, count: int | None = None, measurement: int | Path | None = None) -> RunDirectory:
    """Evaluates the newest checkpoint of a run again and rewrites its report.

    `measurement`, a row or a file, is judged alone; None: the first row, and all that the end of training judges.
    """
    if count is not None and count < 2:
        raise ConfigError(f"--num must be at least 2, got {count}")
    run, config, problem, weights = _trained(directory)
    if count is not None:
        config = replace(config, evaluation=replace(config.evaluation, final_trajectories=count))
    each = calibration = None
    if measurement is None:
        row, (each, calibration) = 0, judge_each(config, problem, weights)
    else:
        problem, row = measured(problem, measurement, config, load_posterior(config, problem, weights))
    judgement = judge(config, problem, weights, quick=False, measurement_id=row)
    final_report(config, problem, run, judgement, measurement_id=row, each=each, calibration=calibration)
    return run


def _check_output(output: Path | None) -> None:
    if output is not None and (output.suffix != ".npz" or not output.parent.is_dir()):
        raise ConfigError(f"--output must be an .npz file in a directory that exists, got {output}")


def _trained(directory: Path) -> tuple[RunDirectory, RunConfig, InverseProblem, NDArray[np.float32]]:
    run, config = open_run(directory)
    config = on_device_at_hand(config)
    checkpoint = CheckpointStore(run.checkpoints, config.checkpoint.keep).load(only=("learner",))
    return run, config, build_problem(config), checkpoint.parts["learner"].arrays["average"].astype(np.float32)


def ended_diverged(run: RunDirectory) -> bool:
    """Whether the run has been judged, and diverged."""
    return run.results.is_file() and bool(json.loads(run.results.read_text(encoding="utf-8")).get("diverged"))


def closing_lines(run: RunDirectory) -> str:
    """What the user is told at the end: the numbers that matter, and where the rest is."""
    results = json.loads(run.results.read_text(encoding="utf-8"))
    lines = [f"{'':52} {'learned':>10} {'exact':>10}"]
    lines += [f"{row['quantity']:52} {row['learned']:>10} {row['exact']:>10}" for row in results["summary"]]
    lines += [f"note: {note}" for note in results["notes"]]
    return "\n".join([*lines, f"report: {run.report}", ""])
