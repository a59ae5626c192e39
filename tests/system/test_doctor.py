import subprocess
import sys

import pytest

from system import doctor
from system.doctor import Check, examine, examine_disk, examine_import, examine_writable, render


def named(checks):
    return {check.name: check for check in checks}


@pytest.fixture(scope="module")
def checks():
    return named(examine())


def test_everything_is_looked_at_once_in_order(checks):
    assert list(checks) == [
        "python", "torch", "threads", "cuda", "ray", "gymnasium",
        "torchvision", "RTB_DATA", "disk", "shared memory", "run directory",
    ]  # fmt: skip


def test_this_environment_has_what_the_core_needs(checks):
    for name in ("python", "torch", "gymnasium", "torchvision"):
        assert checks[name].ok is True, checks[name]
    assert checks["torch"].detail.startswith("2.")


def test_an_absent_module_is_a_note_or_a_failure_by_need():
    optional = examine_import("no_such_module", needed=False, without="one process only", remedy="install it")
    needed = examine_import("no_such_module", needed=True, without="", remedy="install it")
    assert (optional.ok, optional.detail) == (None, "not installed: one process only")
    assert (needed.ok, needed.remedy) == (False, "install it")


def test_a_module_that_crashes_the_interpreter_is_a_failed_check_not_a_crash(tmp_path, monkeypatch):
    (tmp_path / "dies_at_import.py").write_text("import os; os.abort()")
    (tmp_path / "raises_at_import.py").write_text("raise ImportError('libcuda is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert examine_import("dies_at_import", needed=True, without="", remedy="").ok is False
    raised = examine_import("raises_at_import", needed=True, without="", remedy="")
    assert raised.detail == "cannot be imported: ImportError: libcuda is missing"


@pytest.mark.parametrize(("gigabytes", "ok"), [(0.5, False), (3, None), (50, True)])
def test_disk_space_is_judged_by_two_limits(gigabytes, ok):
    check = examine_disk(int(gigabytes * 2**30))
    assert check.ok is ok
    assert check.detail.startswith(f"{gigabytes:.1f} GB free")


def test_a_directory_that_cannot_be_written_fails(tmp_path):
    assert examine_writable(tmp_path).ok is True
    assert list(tmp_path.iterdir()) == []
    gone = examine_writable(tmp_path / "gone")
    assert gone.ok is False and "No such file" in gone.detail


def test_the_data_folder_is_absent_wrong_empty_or_found(tmp_path, monkeypatch):
    monkeypatch.delenv("RTB_DATA", raising=False)
    assert doctor._data().ok is None
    monkeypatch.setenv("RTB_DATA", str(tmp_path / "gone"))
    assert doctor._data().ok is False
    monkeypatch.setenv("RTB_DATA", str(tmp_path))
    assert doctor._data().ok is None
    (tmp_path / "galaxies").mkdir()
    check = doctor._data()
    assert check.ok is True and check.detail.endswith("1 entries")


@pytest.mark.parametrize(("threads", "ok"), [("1", True), ("2", None)])
def test_more_than_one_thread_is_noted(threads, ok):
    program = "from system.doctor import _threads; check = _threads(); print(check.ok, check.detail)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"OMP_NUM_THREADS": threads, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == f"{ok} {threads} torch thread(s) a process, OMP_NUM_THREADS={threads}"


def test_torchvision_fails_by_its_presence(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: object())
    check = doctor._torchvision()
    assert check.ok is False and check.remedy == "pip uninstall torchvision"


def test_a_check_that_breaks_is_a_failed_check(monkeypatch):
    def broken():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(doctor, "_shared_memory", broken)
    monkeypatch.setattr(doctor, "examine_import", lambda name, **_: Check(name=name, ok=True, detail=""))
    check = named(examine())["shared memory"]
    assert (check.ok, check.detail) == (False, "RuntimeError: two lines")


def test_the_table_lines_up_and_shows_remedies_where_they_are_needed():
    table = render(
        [
            Check(name="python", ok=True, detail="3.11.7", remedy="never shown"),
            Check(name="ray", ok=None, detail="not installed", remedy="pip install ray"),
            Check(name="run directory", ok=False, detail="read-only", remedy="elsewhere"),
        ]
    )
    assert table.splitlines() == [
        "ok    python         3.11.7",
        "note  ray            not installed",
        "                     -> pip install ray",
        "FAIL  run directory  read-only",
        "                     -> elsewhere",
    ]
