"""A run from start to report: what is left behind, and what survives being stopped at any moment."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import system.local
import system.loop
import system.part
import system.run
from envs import InverseProblem, make_problem
from envs.asked import LikelihoodCalls
from envs.likelihoods import GaussianLikelihood
from envs.registry import register
from evaluation import evaluate
from evaluation.evaluation import evaluate_corrected
from evaluation.report import corrected_rows, summary_rows
from system.checkpoint import CheckpointStore
from system.config_file import config_from_tree
from system.errors import CheckpointError, ConfigError, RunnerError, UserError
from system.exact import ExactConfig
from system.judgement import Draws, Judgement
from system.metrics import read_metrics
from system.notes import calls_spent, doubts
from system.run import closing_lines, evaluate_run, resume, sample, sample_exact, train
from system.run_directory import RunDirectory, write_text

TREE = {
    "name": "tiny",
    "updates": 200,
    "problem": {"name": "gaussian-linear", "dim": 2, "measurement_dim": 1, "num_steps": 5},
    "posterior": {"hidden": 8, "depth": 1},
    "actor": {"batch_size": 8},
    "learner": {"batch_size": 8, "warmup_updates": 5},
    "replay": {"min_size": 16, "newest_window": 32, "max_items": 64, "priority": "residual"},
    "evaluation": {"interval_seconds": 1000, "trajectories": 16, "final_trajectories": 32},
    "checkpoint": {"interval_seconds": 0},
}


def _config(**changes):
    return config_from_tree(TREE | changes, "test")


def _checkpoint(run):
    return CheckpointStore(run.checkpoints).load()


def _assert_same_end(ours, theirs):
    """The last checkpoints (all but clocks) and the samples of two runs."""
    first, second = _checkpoint(ours), _checkpoint(theirs)
    assert first.step == second.step == 200
    for part in ("learner", "actor-0", "replay-0"):
        assert first.parts[part].scalars == second.parts[part].scalars
        for name, value in first.parts[part].arrays.items():
            np.testing.assert_array_equal(second.parts[part].arrays[name], value, err_msg=f"{part}.{name}")
    assert first.parts["run"].scalars["trajectories"] == second.parts["run"].scalars["trajectories"]
    with np.load(ours.samples) as one, np.load(theirs.samples) as other:
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class _StopError(Exception):
    """Stands for a driver that dies between two slices."""


@pytest.fixture(autouse=True)
def _short_slices_and_a_plain_report(monkeypatch):
    """A checkpoint every 0.05 s, and results without figures, which take seconds; one test draws them."""
    monkeypatch.setattr(system.local, "SLICE_SECONDS", 0.05)

    def results_only(config, problem, run, judgement, notes=(), *, measurement_id=0, **judged):
        evaluation = judgement.evaluation
        rows = [
            {"quantity": row.quantity, "learned": row.learned, "exact": row.exact}
            for row in (*summary_rows(evaluation), *corrected_rows(judgement.correction))
        ]
        notes = [*notes, *doubts(problem, judgement, read_metrics(run.metrics), measurement_id)]
        write_text(run.results, json.dumps({"summary": rows, "notes": notes}))

    monkeypatch.setattr(system.run, "final_report", results_only)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run with its real report."""
    slices, system.local.SLICE_SECONDS = system.local.SLICE_SECONDS, 0.05
    run = train(_config(), tmp_path_factory.mktemp("runs") / "straight", quiet=True)
    system.local.SLICE_SECONDS = slices
    return run


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be harmed."""
    return type(finished)(path=Path(shutil.copytree(finished.path, tmp_path / "copy")))


def _interrupted(tmp_path, monkeypatch, saves=3, **changes):
    """A run whose driver has died after `saves` checkpoints."""
    original, left = system.loop.save, [saves]

    def save(*arguments, **options):
        original(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr(system.loop, "save", save)
        with pytest.raises(_StopError):
            train(_config(**changes), tmp_path / "stopped", quiet=True)
    return tmp_path / "stopped"


@pytest.fixture
def started_at(monkeypatch):
    """The update at which each run of this test began to train: one that starts over would end in the same bits."""
    starts, original = {}, system.local.LocalRunner.advance

    def advance(runner):
        starts.setdefault(runner, runner.updates)
        return original(runner)

    monkeypatch.setattr(system.local.LocalRunner, "advance", advance)
    return lambda: list(starts.values())


def test_a_run_leaves_configuration_metrics_events_checkpoints_samples_and_results(finished):
    assert config_from_tree(TREE, "test").to_yaml() == finished.config.read_text(encoding="utf-8")
    assert len(CheckpointStore(finished.checkpoints).steps()) == 2 and _checkpoint(finished).step == 200
    assert read_metrics(finished.metrics) and list(finished.tensorboard.iterdir())
    assert "<html" in finished.report.read_text(encoding="utf-8") and len(list(finished.figures.glob("*.png"))) >= 2
    with np.load(finished.samples, allow_pickle=False) as stored:
        assert stored["samples"].shape == (32, 2) and stored["log_weight"].shape == (32,)
        assert stored["samples"].dtype == np.float32 and stored["log_weight"].dtype == np.float64
    assert json.loads(finished.results.read_text(encoding="utf-8"))["summary"]


def test_a_run_without_a_directory_gets_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(train(_config(updates=1), quiet=True).path) for _ in range(2)] == ["runs/tiny-1", "runs/tiny-2"]


def test_an_interrupted_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path, monkeypatch, finished, started_at
):
    stopped = _interrupted(tmp_path, monkeypatch)
    saved = max(CheckpointStore(stopped / "checkpoints").steps())
    _assert_same_end(resume(stopped, quiet=True), finished)
    assert started_at() == [0, saved] and 0 < saved < 200


def test_a_killed_process_loses_nothing_but_time(tmp_path, finished, started_at):
    """SIGKILL while it trains and saves, then `resume`: the same bits as the run that was left alone."""
    config, directory = tmp_path / "tiny.yaml", tmp_path / "killed"
    config.write_text(_config().to_yaml(), encoding="utf-8")
    program = (
        "import sys, system.local; from system.__main__ import main; system.local.SLICE_SECONDS = 0.0; "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "train", str(config), "--run", str(directory), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not CheckpointStore(directory / "checkpoints").steps():
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read().decode()
            time.sleep(0.01)
        time.sleep(0.15)  # into a later slice, or the writing of a later checkpoint
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = max(CheckpointStore(directory / "checkpoints").steps())
    assert 0 < saved < 200 and not (directory / "samples.npz").exists()
    _assert_same_end(resume(directory, quiet=True), finished)
    assert started_at() == [saved]


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_and_the_run_ends_the_same(
    tmp_path, monkeypatch, finished, capfd
):
    stopped = _interrupted(tmp_path, monkeypatch)
    _, newest = CheckpointStore(stopped / "checkpoints").steps()
    file = stopped / "checkpoints" / f"step-{newest:09d}" / "learner.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    run = resume(stopped)
    _assert_same_end(run, finished)
    warning = f"checkpoint step-{newest:09d} is damaged and was not used: learner.safetensors has"
    printed = capfd.readouterr()
    assert warning in " ".join((printed.out + printed.err).split())
    assert any(warning in note for note in json.loads(run.results.read_text(encoding="utf-8"))["notes"])


def test_resume_of_a_finished_run_changes_no_weight(copy, finished):
    _assert_same_end(resume(copy.path, quiet=True), finished)


def test_resume_without_a_checkpoint_says_that_there_is_none(copy):
    shutil.rmtree(copy.checkpoints)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; the run stopped before its first one"):
        resume(copy.path, quiet=True)


def test_resume_with_only_damaged_checkpoints_names_each_and_touches_nothing(copy):
    for step in CheckpointStore(copy.checkpoints).steps():
        (copy.checkpoints / f"step-{step:09d}" / "manifest.json").write_text("{", encoding="utf-8")
    before = sorted(copy.path.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"no usable checkpoint in .*: checkpoint step-000000200 is damaged .*; ch"
    ):
        resume(copy.path, quiet=True)
    assert sorted(copy.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("updates: 200", "updates: 300", "config.yaml has updates = 300, but its checkpoint was made with 200; put it"),
        ("hidden: 8", "hidden: 16", "config.yaml has posterior.hidden = 16, but its checkpoint was made with 8"),
        ("noise_std: 0.5", "noise_std: 0.25", r"has problem.noise_std = 0.25, but its checkpoint was made with 0.5"),
        ("seed: 0", "seed: 4", r"has (problem\.)?seed = 4, but its checkpoint was made with 0"),
    ],
)
def test_resume_of_a_run_whose_configuration_was_edited_names_the_key(copy, old, new, message):
    text = copy.config.read_text(encoding="utf-8")
    assert old in text
    copy.config.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        resume(copy.path, quiet=True)


@pytest.mark.parametrize("key", ["num_actors", "num_shards", "num_learners"])
def test_the_number_of_processes_may_differ_on_resume(copy, finished, key):
    text = copy.config.read_text(encoding="utf-8")
    copy.config.write_text(re.sub(f"{key}: .", f"{key}: 3", text), encoding="utf-8")
    assert f"{key}: 3" in copy.config.read_text(encoding="utf-8")
    _assert_same_end(resume(copy.path, quiet=True), finished)


def test_a_local_run_is_not_resumed_on_a_cluster(finished):
    with pytest.raises(ConfigError, match=r"--cluster needs a run of the ray runner, but .* is one of the local"):
        resume(finished.path, cluster="10.0.0.1:6379")


def test_where_the_cluster_is_may_change_between_train_and_resume(copy, finished):
    text = copy.config.read_text(encoding="utf-8")
    copy.config.write_text(text.replace("address: null", "address: 10.0.0.1:6379"), encoding="utf-8")
    _assert_same_end(resume(copy.path, quiet=True), finished)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    for act in (lambda: resume(tmp_path), lambda: sample(tmp_path, 3, 0, None), lambda: evaluate_run(tmp_path)):
        with pytest.raises(UserError, match=r"expected the directory of a run, but .* has no config\.yaml"):
            act()


def test_training_into_the_directory_of_a_run_is_refused_and_harms_nothing(copy):
    before = {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"holds a run; continue it with `rtb resume "):
        train(_config(), copy.path, quiet=True)
    assert {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()} == before


def _full_disk(monkeypatch, after):
    """Every array file after the first `after` finds the disk full."""
    original, left = system.part.save_file, [after]

    def save_file(arrays, path):
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(arrays, path)

    monkeypatch.setattr(system.part, "save_file", save_file)
    return left


def test_a_full_disk_while_saving_is_a_warning_the_run_goes_on_and_the_old_checkpoint_is_intact(
    tmp_path, monkeypatch, finished, capfd
):
    left, steps = _full_disk(monkeypatch, after=6), []  # two parts of the second checkpoint fit
    original = system.loop.save

    def save(runner, store, progress, *, last):
        if last:
            steps.extend(store.steps())
            assert store.load().warnings == ()
            left[0] = 10**9  # space again
        original(runner, store, progress, last=last)

    monkeypatch.setattr(system.loop, "save", save)
    run = train(_config(), tmp_path / "full")
    _assert_same_end(run, finished)
    assert len(steps) == 1 and steps[0] < 200  # the first checkpoint, and no half of a later one
    printed = capfd.readouterr()
    line = " ".join((printed.out + printed.err).split())
    assert re.search(
        r"No space left on device; it needs [\d,]+ bytes and [\d,]+ are free; earlier checkpoints are", line
    )


def test_a_full_disk_at_the_end_is_an_error_and_the_earlier_checkpoint_resumes_to_the_same_end(
    tmp_path, monkeypatch, finished
):
    with monkeypatch.context() as patch:
        _full_disk(patch, after=4)
        with pytest.raises(CheckpointError, match="No space left on device"):
            train(_config(), tmp_path / "full", quiet=True)
    _assert_same_end(resume(tmp_path / "full", quiet=True), finished)


def test_sample_draws_as_many_as_asked_from_the_averaged_weights(finished, tmp_path):
    path = sample(finished.path, 600, 3, tmp_path / "drawn.npz")
    assert path == tmp_path / "drawn.npz"
    with (
        np.load(path, allow_pickle=False) as stored,
        np.load(sample(finished.path, 600, 3, tmp_path / "a.npz")) as same,
    ):
        assert stored["samples"].shape == (600, 2) and np.isfinite(stored["log_weight"]).all()
        np.testing.assert_array_equal(stored["samples"], same["samples"])
    with np.load(sample(finished.path, 600, 4, tmp_path / "b.npz")) as other, np.load(path) as stored:
        assert (other["samples"] != stored["samples"]).any()
    with pytest.raises(ConfigError, match="--num must be at least 1, got 0"):
        sample(finished.path, 0, 0, None)


def test_sample_and_evaluate_need_only_the_learners_part_of_a_checkpoint(copy):
    for file in copy.checkpoints.glob("*/replay-0.*"):
        file.unlink()
    assert sample(copy.path, 5, 0, None) == copy.samples
    assert evaluate_run(copy.path, 16).path == copy.path


def test_a_run_of_a_gpu_is_sampled_and_evaluated_where_there_is_none_but_not_resumed(copy):
    text = copy.config.read_text(encoding="utf-8")
    copy.config.write_text(text.replace("device: auto", "device: cuda:7"), encoding="utf-8")
    assert sample(copy.path, 5, 0, None) == copy.samples
    assert evaluate_run(copy.path, 16).path == copy.path
    with pytest.raises(ConfigError, match=r"device must be auto, or one that this process has.*got 'cuda:7'"):
        resume(copy.path, quiet=True)


def test_evaluate_with_the_configured_number_repeats_the_runs_own_results(copy):
    before = json.loads(copy.results.read_text(encoding="utf-8"))["summary"]
    copy.results.unlink()
    evaluate_run(copy.path)
    again = json.loads(copy.results.read_text(encoding="utf-8"))["summary"]
    assert [row["learned"] for row in again] == [row["learned"] for row in before]
    evaluate_run(copy.path, 64)
    assert json.loads(copy.results.read_text(encoding="utf-8"))["summary"] != again
    with pytest.raises(ConfigError, match="--num must be at least 2, got 1"):
        evaluate_run(copy.path, 1)


def test_an_interrupt_saves_first_and_names_the_run_to_resume(tmp_path, monkeypatch):
    original, slices = system.local.LocalRunner.advance, [3]

    def advance(runner):
        slices[0] -= 1
        if not slices[0]:
            raise KeyboardInterrupt
        return original(runner)

    monkeypatch.setattr(system.local.LocalRunner, "advance", advance)
    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(_config(checkpoint={"interval_seconds": 1000}), path, quiet=True)
    (step,) = CheckpointStore(path / "checkpoints").steps()
    assert step > 0
    assert str(interrupt.value) == f"interrupted; `rtb resume {path}` goes on from update {step}"


def test_a_run_that_is_terminated_is_saved_as_an_interrupted_one(tmp_path, monkeypatch):
    original, slices = system.local.LocalRunner.advance, [3]

    def advance(runner):
        slices[0] -= 1
        if not slices[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(runner)

    monkeypatch.setattr(system.local.LocalRunner, "advance", advance)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; `rtb resume .* goes on from update"):
        train(_config(checkpoint={"interval_seconds": 1000}), tmp_path / "stopped", quiet=True)
    assert CheckpointStore(tmp_path / "stopped" / "checkpoints").steps() and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("during", ["judge", "final_report"])
def test_a_run_that_is_terminated_while_it_is_judged_at_last_says_how_to_go_on_and_does(tmp_path, monkeypatch, during):
    original, told = getattr(system.run, during), [True]

    def terminated(*arguments, **options):
        if told and not options.get("quick"):
            told.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(system.run, during, terminated)
    path, before = tmp_path / "stopped", signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; `rtb resume .* goes on from update \d+$"):
        train(_config(updates=20), path, quiet=True)
    assert signal.getsignal(signal.SIGTERM) == before and not RunDirectory.open(path).results.exists()
    assert resume(path, quiet=True).results.is_file()


@pytest.mark.parametrize(
    ("give", "got"),
    [
        (lambda found: found[:, None], r"shape \(8, 1\)"),
        (lambda found: found.sum(), r"shape \(\)"),
        (lambda found: found.numpy(), "ndarray"),
    ],
)
def test_a_likelihood_that_gives_no_number_for_each_x_ends_the_run_by_name(tmp_path, monkeypatch, give, got):
    source, original = tmp_path / "config.yaml", GaussianLikelihood.log_prob
    source.write_text(yaml.safe_dump(TREE))
    monkeypatch.setattr(GaussianLikelihood, "log_prob", lambda *arguments: give(original(*arguments)))
    with pytest.raises(RunnerError, match=rf"\(GaussianLikelihood\) must give a tensor of one number.* got {got}"):
        train(_config(), tmp_path / "run", quiet=True)
    with pytest.raises(RunnerError, match=r"log p\(y \| x\) \[256\], got"):
        sample_exact(source, [], ExactConfig(max_seconds=10.0), tmp_path / "exact.npz", quiet=True)


def test_a_run_that_is_refused_before_it_begins_leaves_no_directory(tmp_path):
    for changes in ({"posterior": {"form": "finetune"}}, {"replay": {"capacity_bytes": 10}}):
        with pytest.raises(UserError):
            train(_config(**changes), tmp_path / "refused", quiet=True)
        assert not (tmp_path / "refused").exists()


@pytest.fixture(scope="module")
def two_measurements(tmp_path_factory):
    """A run on a problem of two measurements far apart."""

    @register("two-points")
    def two_points(*, spread: float = 3.0) -> InverseProblem:
        """Two measurements of the same Gaussian prior."""
        problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 5})
        measurements = torch.tensor([[-spread], [spread]])
        return dataclasses.replace(problem, name="two-points", measurements=measurements, exact=(), truth=None)

    tree = TREE | {"problem": {"name": "two-points"}}
    return train(config_from_tree(tree, "test"), tmp_path_factory.mktemp("runs") / "two", quiet=True)


def test_samples_and_evaluation_are_of_the_measurement_that_is_asked_for(two_measurements, tmp_path):
    def drawn(measurement):
        path = sample(two_measurements.path, 50, 0, tmp_path / f"{measurement}.npz", measurement)
        with np.load(path) as stored:
            return stored["samples"], stored["log_weight"]

    (first, first_weight), (second, second_weight) = drawn(0), drawn(1)
    assert np.abs(first - second).max() > 0.1 and not np.array_equal(first_weight, second_weight)
    for measurement in (0, 1):
        results = json.loads(evaluate_run(two_measurements.path, 32, measurement).results.read_text())
        assert any(f"for measurement {measurement} of 0..1" in note for note in results["notes"])
    refused = r"--measurement must be within 0\.\.1, the rows of problem 'two-points', got "
    with pytest.raises(ConfigError, match=refused + "2"):
        sample(two_measurements.path, 5, 0, None, 2)
    with pytest.raises(ConfigError, match=refused + "-1"):
        evaluate_run(two_measurements.path, 5, -1)


class _Never:
    """A likelihood that is zero everywhere."""

    measurement_shape = (1,)

    def log_prob(self, value, measurement):
        return torch.full((len(value),), -torch.inf)


def test_a_run_in_which_nothing_is_possible_says_so_while_it_runs_and_at_its_end(tmp_path, capsys):
    @register("nowhere")
    def nowhere() -> InverseProblem:
        """Nothing explains the measurement."""
        problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 5})
        return dataclasses.replace(problem, name="nowhere", likelihood=_Never(), exact=(), truth=None, solve=None)

    tree = TREE | {"problem": {"name": "nowhere"}, "updates": 600}
    run = train(config_from_tree(tree, "test"), tmp_path / "none")
    said = (
        "trajectories has a likelihood above zero, so there is nothing to learn from: look at the likelihood's support"
    )
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: none of")]
    assert len(warned) == 1 and said in warned[0]
    assert any(said in note for note in json.loads(run.results.read_text())["notes"])


@pytest.mark.parametrize("output", ["missing/x.npz", "x.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_drawn(copy, tmp_path, output):
    with pytest.raises(ConfigError, match=r"--output must be an \.npz file in a directory that exists, got .*"):
        sample(copy.path, 10, 0, tmp_path / output)


def test_doubts_about_a_run_are_told_at_its_end_and_a_sound_run_has_none(finished, tmp_path):
    assert json.loads(finished.results.read_text()).get("notes", []) == []
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 5})
    log_weight = torch.zeros(1000, dtype=torch.float64)
    log_weight[0] = 50.0  # one path outweighs all others
    drawn = Draws(samples=torch.randn(1000, 2), log_weight=log_weight)
    judgement = Judgement(evaluation=evaluate(problem, 0, drawn.samples, log_weight), draws=drawn)
    newest = {"learner/updates": 20.0, "learner/set_aside": 11.0, "learner/rollbacks": 2.0, "replay/refused": 655.0}
    history = {key: (np.array([1]), np.array([1.0]), np.array([value])) for key, value in newest.items()}
    skipped, refused, weight = doubts(problem, judgement, history, 0)
    assert skipped.startswith("the guard set 11 of 20 batches aside and rolled back 2 times")
    once = history | {"learner/rollbacks": (np.array([1]), np.array([1.0]), np.array([1.0]))}
    assert "batches aside and rolled back once: lower" in doubts(problem, judgement, once, 0)[0]
    assert refused == "655 trajectories were refused, as a number in them was not finite"
    assert weight.startswith("an effective sample size of 0.1 % is that of 1.0 paths")
    assert weight.endswith("can be trusted")  # and nothing of corrected samples, where there are none
    correction = evaluate_corrected(problem, 0, drawn.samples, ancestors=1, accepted=0.5)
    *_, also = doubts(problem, dataclasses.replace(judgement, correction=correction), history, 0)
    assert also.startswith(f"{weight}, nor means, widths and shares of modes of corrected samples")
    assert doubts(problem, judgement, {}, 0)[0].startswith("the run ended before its first update")
    misfit = dataclasses.replace(correction, reduced_chi2=30.0)
    assert (
        "a reduced χ² of 30 for y of 1 numbers"
        in doubts(problem, dataclasses.replace(judgement, correction=misfit), history, 0)[2]
    )
    lost = dataclasses.replace(drawn, log_weight=torch.full_like(log_weight, torch.nan))
    assert doubts(problem, dataclasses.replace(judgement, draws=lost), history, 0)[2].startswith(
        "the likelihood of 1000 of 1000 final paths is not a number"
    )
    run = type(finished)(path=tmp_path)
    write_text(run.results, json.dumps({"summary": [], "notes": [weight]}))
    assert f"note: {weight}\n" in closing_lines(run)


def test_a_run_that_has_spent_its_likelihood_calls_ends_in_good_order_and_says_what_they_were(tmp_path):
    posterior = TREE["posterior"] | {"likelihood_gradient": "none"}
    rarely = {"interval_seconds": 1000}
    config = _config(updates=10**6, max_likelihood_calls=200, posterior=posterior, checkpoint=rarely)
    run = train(config, tmp_path / "run", quiet=True)
    history = read_metrics(run.metrics)
    calls, judged = (int(history[f"system/{name}_calls"][2][-1]) for name in ("likelihood", "judge"))
    assert calls == 200 == history["actor/trajectories"][2][-1] and history["system/progress"][2][-1] == 1
    assert judged == 4 * 16  # of one evaluation: trajectories, their chi square, that of exact samples, exact paths
    assert _checkpoint(run).parts["run"].scalars["likelihood_calls"] == 200 and run.samples.exists()
    assert system.run._judge_calls(run) == 64  # what the count goes on from if the run is resumed
    problem = dataclasses.replace(make_problem("gaussian-linear"), calls=LikelihoodCalls(5_000))
    assert calls_spent(_config(max_likelihood_calls=200), problem, history) == [
        "training took 200 likelihood calls (max_likelihood_calls: 200), evaluations and this report 5,000 more"
    ]
    assert calls_spent(_config(), problem, history) == []
