import os
import threading
from pathlib import Path

import pytest

from system import run_directory
from system.errors import UserError
from system.run_directory import RunDirectory, write_text


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(path):
    run = RunDirectory.create(Path(path), "any")
    write_text(run.config, "seed: 1\n")
    return run


def test_runs_are_numbered_after_the_highest_there_is():
    assert [str(RunDirectory.create(None, "digits").path) for _ in range(2)] == ["runs/digits-1", "runs/digits-2"]
    Path("runs/digits-9").mkdir()
    assert str(RunDirectory.create(None, "digits").path) == "runs/digits-10"
    assert str(RunDirectory.create(None, "gauss").path) == "runs/gauss-1"


def test_twenty_runs_started_at_once_have_twenty_directories():
    made = []
    threads = [threading.Thread(target=lambda: made.append(RunDirectory.create(None, "a").path)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 20


def test_a_new_run_has_its_folders_and_its_paths_lie_inside():
    run = RunDirectory.create(Path("out/here"), "any")
    assert sorted(os.listdir(run.path)) == ["checkpoints", "figures", "tensorboard"]
    files = [run.config, run.metrics, run.samples, run.report]
    assert [str(f) for f in files] == [
        f"out/here/{name}" for name in ("config.yaml", "metrics.jsonl", "samples.npz", "report.html")
    ]


@pytest.mark.parametrize("trace", ["config.yaml", "metrics.jsonl", "checkpoints/step-000000001"])
def test_a_directory_that_holds_a_run_is_refused_and_resume_is_named(trace):
    run = RunDirectory.create(Path("old"), "any")
    (run.path / trace).touch()
    with pytest.raises(UserError, match=r"old holds a run; continue it with `rtb resume old`"):
        RunDirectory.create(Path("old"), "any")


def test_an_empty_directory_and_one_with_other_things_are_accepted():
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    for name in ("empty", "other"):
        assert RunDirectory.create(Path(name), "any").checkpoints.is_dir()
    assert Path("other/notes.txt").read_text() == "mine"


def test_a_file_in_the_way_and_a_bad_name_are_one_line_errors():
    Path("file").touch()
    with pytest.raises(UserError, match="cannot make a run directory at file"):
        RunDirectory.create(Path("file"), "any")
    with pytest.raises(UserError, match=r"got '\.\./x'"):
        RunDirectory.create(None, "../x")


def test_open_finds_a_run_and_says_what_is_wrong_otherwise():
    assert make_run("runs/digits-1").path == RunDirectory.open(Path("runs/digits-1")).path
    Path("plain").mkdir()
    Path("file").touch()
    for name, what in (("plain", "has no config.yaml"), ("file", "is not a directory"), ("gone", "does not exist")):
        with pytest.raises(UserError, match=rf"{name} {what}; did you mean runs/digits-1\?"):
            RunDirectory.open(Path(name))


def test_open_names_the_nearest_runs_and_those_inside():
    for name in ("digits-1", "digits-12", "gauss-1"):
        make_run(f"runs/{name}")
    with pytest.raises(UserError, match=r"did you mean runs/digits-1, runs/digits-12\?"):
        RunDirectory.open(Path("digits-13"))
    os.utime("runs/gauss-1/config.yaml", (2e9, 2e9))
    with pytest.raises(UserError, match=r"runs has no config.yaml; did you mean runs/gauss-1, runs/digits"):
        RunDirectory.open(Path("runs"))


def test_open_without_any_run_around_points_to_train():
    with pytest.raises(UserError, match="start one with `rtb train`"):
        RunDirectory.open(Path("x"))


def test_a_failed_write_leaves_the_old_text_and_no_litter(monkeypatch):
    write_text(Path("a.txt"), "old")

    def fail(_):
        raise OSError("no")

    monkeypatch.setattr(run_directory.os, "fsync", fail)
    with pytest.raises(OSError, match="no"):
        write_text(Path("a.txt"), "new")
    assert Path("a.txt").read_text() == "old"
    assert os.listdir() == ["a.txt"]
