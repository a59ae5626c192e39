"""`rtb` as it is typed: output, one-line errors, exit codes."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import system.run
from system.__main__ import main

ROOT = Path(__file__).parents[2]
TINY = """
updates: 5
problem: {name: gaussian-linear, dim: 2, measurement_dim: 1, num_steps: 5}
posterior: {hidden: 8, depth: 1}
actor: {batch_size: 8}
learner: {batch_size: 8, warmup_updates: 5}
replay: {min_size: 16}
evaluation: {trajectories: 16, final_trajectories: 32}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@pytest.fixture
def error(capfd, tmp_path):
    """Runs a command that fails; its one line."""

    def call(*arguments):
        assert main(arguments) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err
        assert err.startswith("rtb: error: ") and len(err.replace(str(tmp_path), "")) < 260
        return err.removeprefix("rtb: error: ").rstrip()

    return call


@pytest.fixture
def no_report(monkeypatch):
    """Results without figures, which take seconds to draw."""

    def results_only(config, problem, run, judgement, notes=(), *, measurement_id=0, **judged):
        summary = [{"quantity": "ELBO", "learned": "-1", "exact": "-1"}]
        run.results.write_text(json.dumps({"summary": summary, "notes": list(notes)}))

    monkeypatch.setattr(system.run, "final_report", results_only)


def _environment(path):
    """That of this process, with a folder more to import from."""
    paths = [str(path), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _rtb(*arguments, cwd, path):
    environment = _environment(path)
    command = [sys.executable, "-m", "system", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND; see `rtb --help`"),
        (("trian",), "argument COMMAND: invalid choice: 'trian' (choose from 'train', 'resume'"),
        (("train",), "rtb train needs a configuration file, e.g. configs/experiments/digits_half.yaml"),
        (("train", "none.yaml"), "no configuration file none.yaml; the ones that ship are in configs/experiments/"),
        (("resume",), "the following arguments are required: RUN; see `rtb resume --help`"),
        (("resume", "no/such/run"), "expected the directory of a run, but no/such/run does not exist"),
        (("sample", "no/such/run"), "expected the directory of a run, but no/such/run does not exist"),
        (("evaluate", "no/such/run"), "expected the directory of a run, but no/such/run does not exist"),
        (("resume", "run", "--updates", "5"), "unknown argument '--updates' of `rtb resume`; see `rtb resume --help`"),
        (("sample", "run", "--chains", "5"), "--chains is for `rtb sample --exact`"),
        (("sample", "run", "--exact", "--corrected", "3"), "--corrected is for samples of a learned posterior"),
        (("sample", "run", "--corrected"), "argument --corrected: expected one argument"),
        (("sample", "run", "--num", "many"), "argument --num: invalid int value: 'many'; see `rtb sample --help`"),
        (("problems", "gausian-linear"), "unknown problem 'gausian-linear'; did you mean 'gaussian-linear'?"),
    ],
)
def test_a_command_that_cannot_be_run_ends_with_2_and_one_line(error, arguments, message):
    assert error(*arguments).startswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learner.learning-rat", "1"), "command line: unknown option --learner.learning-rat; did you mean"),
        (("--problem.noise-std", "0"), "problem 'gaussian-linear': noise_std must be a positive finite standard devi"),
        (("--problem.noise-std", "-1"), "problem 'gaussian-linear': noise_std must be a positive finite standard devi"),
        (("--replay.priority", "none"), "command line: invalid value 'none' for --replay.priority; expected {uniform,"),
        (
            ("--actor.mixture.teacher", "1"),
            "command line: unknown option --actor.mixture.teacher; flags change the entries of actor.mixture that the "
            "configuration file has; add this one there",
        ),
        (("--posterior.form", "finetune"), "posterior: the finetune form trains a copy of the prior's network"),
        (("--name", "a/b"), "name of a run must be letters, digits, '.', '-' and '_', got 'a/b'"),
        (("--replay.capacity-bytes", "9"), "replay: a budget of 9 bytes holds 0 items of"),
    ],
)
def test_a_run_that_cannot_start_ends_with_2_and_one_line(error, config, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error("train", config, "--quiet", *flags).startswith(message)


def test_debug_shows_the_traceback_before_the_same_line(config, capfd):
    assert main(["train", config, "--updates", "0", "--debug"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("Traceback") and "ConfigError" in err
    assert err.splitlines()[-1] == "rtb: error: command line: updates must be at least 1, got 0"


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(config, capfd, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(system.run, "train", interrupt)
    assert main(["train", config]) == 130
    assert capfd.readouterr().err == "rtb: interrupted\n"


def test_a_process_that_fails_has_the_exit_code_and_nothing_on_stdout(tmp_path):
    done = _rtb("train", "none.yaml", cwd=tmp_path, path=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "rtb: error: no configuration file none.yaml; the ones that ship are in configs/experiments/\n"
    )


def test_problems_lists_each_with_a_sentence_and_the_options_of_one(capsys):
    assert main(["problems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"digits-half", "gaussian-linear", "gmm-25-to-9", "gmm-linear"} <= set(names)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)
    assert main(["problems", "gaussian-linear"]) == 0
    out = capsys.readouterr().out
    assert "Gaussian x in `dim` dimensions" in out
    assert "--problem.noise-std (0.5)" in out and "--problem.measurement-dim (8)" in out
    assert main(["problems", "psf-deconvolution"]) == 0
    out = capsys.readouterr().out
    options, meaning, physics = out.index("--problem.seed"), out.index("`pixel_scale` (arcsec)"), out.index("y = K x +")
    assert options < meaning < physics


def test_what_a_problem_leaves_out_of_its_data_is_told_once_and_not_if_quiet(tmp_path, capfd, no_report):
    counts, selection = np.ones((4, 4)), np.ones((4, 4))
    counts[1, 2] = selection[1, 2] = 0
    np.savez(tmp_path / "survey.npz", counts=counts, selection=selection)
    problem = f"{{name: galaxy-field, data: {tmp_path / 'survey.npz'}, num_steps: 2}}"
    path = tmp_path / "field.yaml"
    path.write_text(re.sub("problem: .*", f"problem: {problem}", TINY), encoding="utf-8")
    said = "1 of 16 cells have a selection of 0 and no measurement"
    assert main(["train", str(path), "--run", str(tmp_path / "run")]) == 0
    assert capfd.readouterr().err == f"rtb: {tmp_path / 'survey.npz'}: {said}\n"
    assert main(["train", str(path), "--run", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capfd.readouterr().err == ""


def test_doctor_prints_its_checks(capsys):
    assert main(["doctor"]) in (0, 2)
    out = capsys.readouterr().out
    assert "torch" in out and "Traceback" not in out


def test_the_help_of_train_shows_keys_flags_and_the_files_values(capsys, config):
    assert main(["train", config, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "--cluster ADDRESS",
        "--run DIR",
        "--problem.dim INT (default: 2)",
        "--learner.guard.factor {None}|FLOAT",
    ):
        assert text in out
    assert "Optimiser steps; schedules run over them. (default: 5)" in out


@pytest.mark.parametrize("command", [[], ["resume"], ["sample"], ["evaluate"], ["problems"], ["doctor"]])
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(" ".join(["usage: rtb", *command]))


def test_options_ahead_of_the_configuration_are_sent_behind_it(config, error):
    assert error("train", "--seed", "3", config) == (
        f"the configuration comes before all options: rtb train {config} --option value"
    )


def test_train_resume_sample_and_evaluate_of_one_run(config, tmp_path, monkeypatch, capsys, no_report):
    monkeypatch.chdir(tmp_path)
    assert main(["train", config, "--run", "mine", "--updates", "7", "--problem.noise-std", "0.25"]) == 0
    out = capsys.readouterr().out
    assert "updates=7/7" in out and out.endswith("report: mine/report.html\n")
    text = Path("mine/config.yaml").read_text(encoding="utf-8")
    assert "updates: 7\n" in text and "noise_std: 0.25\n" in text and "name: gaussian-linear\n" in text

    assert main(["resume", "mine", "--quiet"]) == 0
    assert capsys.readouterr().out == ""

    assert main(["sample", "mine", "--num", "12", "--seed", "3", "--output", "drawn.npz"]) == 0
    assert re.fullmatch(
        r"12 samples: drawn\.npz \(ELBO -\d+\.\d\d, effective sample size [\d.e+]+ %\)\n", capsys.readouterr().out
    )
    with np.load("drawn.npz", allow_pickle=False) as stored:
        assert stored["samples"].shape == (12, 2) and stored["log_weight"].shape == (12,)
        assert "corrected" not in stored

    assert main(["sample", "mine", "--num", "12", "--corrected", "30", "--output", "corrected.npz"]) == 0
    told = re.search(r"\n30 corrected, made of (\d+) of them: the fewer, .*\n$", capsys.readouterr().out)
    with np.load("corrected.npz", allow_pickle=False) as stored:
        samples, ancestor = stored["samples"], stored["ancestor"]
        assert samples.shape == (12, 2) and stored["corrected"].shape == (30, 2) and ancestor.shape == (30,)
        assert len(np.unique(ancestor)) == int(told[1])
        assert (stored["corrected"] != samples[ancestor]).any()

    # Samples of a run that diverged are none of the posterior.
    results = json.loads(Path("mine/results.json").read_text(encoding="utf-8"))
    Path("mine/results.json").write_text(json.dumps(results | {"diverged": True}), encoding="utf-8")
    assert main(["sample", "mine", "--num", "12"]) == 0
    assert capsys.readouterr().err == "rtb: warning: the run diverged, and these are not posterior samples: mine\n"

    Path("mine/results.json").unlink()
    assert main(["evaluate", "mine", "--num", "40"]) == 0
    assert capsys.readouterr().out.endswith("report: mine/report.html\n") and Path("mine/results.json").is_file()

    assert main(["train", config, "--run", "mine"]) == 2
    assert "mine holds a run; continue it with `rtb resume mine`" in capsys.readouterr().err


PLUGIN = '''
from envs.registry import register
from envs.problem import InverseProblem
from envs.problems.gaussian_linear import gaussian_linear
import dataclasses, torch

@register("from-outside")
def from_outside(*, offset: float = 0.5, fault: str = "none") -> InverseProblem:
    """A problem of mine."""
    inner = gaussian_linear(dim=2, measurement_dim=1, num_steps=5)
    measurement = inner.measurements + offset
    if fault == "nan":
        measurement = measurement * float("nan")
    if fault == "shape":
        measurement = torch.zeros(1, 3)
    return InverseProblem(
        name="from-outside", prior=inner.prior, likelihood=inner.likelihood, measurements=measurement
    )
'''


@pytest.fixture
def plugin(tmp_path):
    """A folder with a module that registers a problem, and a configuration that uses it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_problems.py").write_text(PLUGIN, encoding="utf-8")
    text = TINY.replace("{name: gaussian-linear, dim: 2, measurement_dim: 1, num_steps: 5}", "{name: from-outside}")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_problem_registered_outside_the_package_trains_and_is_sampled_from(plugin, tmp_path):
    flags = ["--plugins", "my_problems", "--problem.offset", "0.75", "--quiet"]
    done = _rtb("train", "mine.yaml", *flags, "--run", "mine", cwd=tmp_path, path=plugin)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "mine" / "config.yaml").read_text(encoding="utf-8")
    assert "offset: 0.75" in text and "- my_problems" in text
    done = _rtb("sample", "mine", "--num", "3", cwd=tmp_path, path=plugin)
    assert done.returncode == 0 and done.stdout.startswith("3 samples: mine/samples.npz (ELBO "), done.stderr
    done = _rtb("sample", "mine", "--num", "3", cwd=tmp_path, path=ROOT)
    assert (
        done.returncode == 2 and "plugins: cannot import 'my_problems': module 'my_problems' is neither" in done.stderr
    )


def test_a_measurement_that_is_not_finite_or_of_another_shape_is_refused(plugin, tmp_path):
    """In one process of its own, so that no other test sees the problem."""
    program = """
        import sys
        from system.__main__ import main
        for fault in ("nan", "shape"):
            assert main(["train", "mine.yaml", "--plugins", "my_problems", "--problem.fault", fault]) == 2
        assert main(["train", "mine.yaml", "--plugins", "my_problems", "--problem.offset", "much"]) == 2
        assert main(["train", "mine.yaml", "--plugins", "my_problems", "--problem.ofset", "1"]) == 2
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(plugin), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nan, shape, kind, key = done.stderr.splitlines()
    assert nan.endswith("problem 'from-outside': the measurement must be finite, got 1 NaN or infinite values")
    assert shape.endswith("problem 'from-outside': measurements must be [M, 1], got [1, 3]")
    assert kind == "rtb: error: command line: invalid value 'much' for --problem.offset; expected FLOAT"
    assert key == "rtb: error: command line: unknown option --problem.ofset; did you mean --problem.offset?"
    assert not (tmp_path / "runs").exists()  # a run that cannot start leaves nothing behind


HANGING = """
from envs.registry import register
from envs.problem import InverseProblem
from envs.problems.gaussian_linear import gaussian_linear
import dataclasses, time

class Stuck:
    measurement_shape = (1,)

    def log_prob(self, value, measurement):
        time.sleep(600)

@register("stuck")
def stuck() -> InverseProblem:
    return dataclasses.replace(gaussian_linear(dim=2, measurement_dim=1, num_steps=5), name="stuck", likelihood=Stuck())
"""


@pytest.mark.parametrize("command", [["train"], ["sample", "--exact"]])
def test_a_likelihood_that_hangs_ends_the_command_with_its_name_and_the_limit(tmp_path, command):
    (tmp_path / "stuck_problem.py").write_text(HANGING, encoding="utf-8")
    text = TINY.replace("{name: gaussian-linear, dim: 2, measurement_dim: 1, num_steps: 5}", "{name: stuck}")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    flags = ["--plugins", "stuck_problem", "--actor.likelihood-timeout-seconds", "0.2", "--quiet"]
    done = _rtb(command[0], "mine.yaml", *command[1:], *flags, cwd=tmp_path, path=tmp_path)
    asked = "the likelihood of problem 'stuck' (Stuck), asked for "
    assert done.returncode == 2 and done.stderr.startswith(f"rtb: error: {asked}"), done.stderr
    assert done.stderr.endswith("has not returned within 0.2 s (actor.likelihood_timeout_seconds)\n")
