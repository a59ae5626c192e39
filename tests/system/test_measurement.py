"""Amortised from the outside: train once, sample at the measurement of any file, and go on at one of them."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import system.run
from actors import rollout
from diffusion.posterior.control import ControlPosterior
from envs import make_problem
from system.assembly import build_learner, build_posterior, build_problem
from system.checkpoint import CheckpointStore
from system.config import EvaluationConfig
from system.config_file import config_from_tree, load_config
from system.errors import ConfigError
from system.judge import judge_each
from system.measurement import read_measurement, unlike_simulated
from system.replay.config import ReplayConfig
from system.run import open_run, resume, sample

PROBLEM = {"name": "gaussian-linear", "dim": 4, "measurement_dim": 2, "num_steps": 8}
AMORTISED = {
    "name": "tiny",
    "updates": 400,
    "problem": PROBLEM,
    "posterior": {"hidden": 32, "depth": 2},
    "actor": {"batch_size": 64, "simulated_measurements": 16},
    "learner": {"batch_size": 64, "warmup_updates": 20, "learning_rate": 5e-3, "loss_scale": 100},
    "replay": {"min_size": 128, "samples_per_insert": 2, "group_size": 4},
    "evaluation": {"interval_seconds": 1000, "trajectories": 16, "final_trajectories": 32},
}


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch):
    monkeypatch.setattr(system.run, "final_report", lambda *given, **named: None)


@pytest.fixture
def problem():
    return make_problem("gaussian-linear", {key: value for key, value in PROBLEM.items() if key != "name"})


def _rtb(*words):
    from system.__main__ import main

    return main([*map(str, words), "--quiet"])


@pytest.fixture(scope="module")
def amortised(tmp_path_factory):
    path = tmp_path_factory.mktemp("amortised")
    (path / "tiny.yaml").write_text(yaml.safe_dump(AMORTISED), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.run, "final_report", lambda *given, **named: None)
        patch.setattr("system.__main__._closing", lambda *given: None)
        assert _rtb("train", path / "tiny.yaml", "--run", path / "run") == 0
    return path / "run"


@pytest.fixture
def own_closing(monkeypatch):
    monkeypatch.setattr("system.__main__._closing", lambda *given: None)


def _file(tmp_path, value, name="y.npy"):
    path = tmp_path / name
    np.save(path, value) if name.endswith("npy") else np.savez(path, y=value)
    return path


# --- sampling ---


@pytest.mark.parametrize("name", ["y.npy", "y.npz"])
@pytest.mark.parametrize("seed", range(3))
def test_one_network_gives_the_posterior_of_a_measurement_it_has_never_seen(amortised, tmp_path, problem, seed, name):
    generator = torch.Generator().manual_seed(seed)
    measurement = problem.simulate(problem.prior.denoiser.sample(1, generator), generator)
    file, output = _file(tmp_path, measurement[0].numpy(), name), tmp_path / "samples.npz"
    assert _rtb("sample", amortised, "--measurement", file, "--num", 4000, "--output", output) == 0
    exact = problem.at(measurement).solved().exact[0]
    with np.load(output) as found:
        samples, log_weight = torch.from_numpy(found["samples"]).double(), found["log_weight"]
    spread = exact.variance.sqrt()
    assert float(((samples.mean(0) - exact.mean) / spread).abs().max()) < 0.3
    paths = rollout(problem, None, torch.zeros(4000, dtype=torch.int64), generator=generator)
    of_prior = float(problem.log_likelihood_of(paths.states[:, -1], measurement.expand(4000, -1)).mean())
    assert exact.log_partition - float(log_weight.mean()) < 0.1 * (exact.log_partition - of_prior)  # the ELBO's gap
    assert float(np.log(np.mean(np.exp(log_weight)))) == pytest.approx(exact.log_partition, abs=0.05)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3), r"has measurements of shape \(2,\), got an array of shape \(3,\)"),
        (np.zeros((1, 2)), r"shape \(2,\), got an array of shape \(1, 2\)"),
        (np.array([0.0, np.nan]), "every number must be finite, got 1 NaN or infinite ones of 2"),
        (np.array([1j, 0]), "expected real numbers, got an array of dtype complex128"),
        (np.array(["a", "b"]), "expected real numbers, got an array of dtype <U1"),
    ],
)
@pytest.mark.parametrize("name", ["y.npy", "y.npz"])
def test_a_measurement_that_cannot_be_is_refused(problem, tmp_path, value, message, name):
    with pytest.raises(ConfigError, match=message):
        read_measurement(_file(tmp_path, value, name), problem)


def test_a_file_that_is_none_or_holds_something_else_is_refused(problem, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such file$"):
        read_measurement(tmp_path / "gone.npy", problem)
    (tmp_path / "text.npy").write_text("1 2", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected a .npy file, or a .npz file with one array"):
        read_measurement(tmp_path / "text.npy", problem)
    np.save(tmp_path / "object.npy", np.array([{}, {}], dtype=object))
    with pytest.raises(ConfigError, match=r"expected a .npy file"):
        read_measurement(tmp_path / "object.npy", problem)
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(ConfigError, match="expected one array in the file, got 2: a, b"):
        read_measurement(tmp_path / "two.npz", problem)


def test_a_measurement_far_from_all_simulated_ones_is_sampled_with_a_warning(amortised, tmp_path, problem, capsys):
    generator = torch.Generator().manual_seed(3)
    usual = problem.simulate(problem.prior.denoiser.sample(100, generator), generator)
    doubted = [unlike_simulated(problem, value) is not None for value in usual]
    assert sum(doubted) <= 3 and unlike_simulated(problem, 100 * usual[0]) is not None
    file = _file(tmp_path, np.array([40.0, -60.0]))
    assert _rtb("sample", amortised, "--measurement", file, "--num", 10, "--output", tmp_path / "s.npz") == 0
    assert "rtb: warning: the measurement is" in capsys.readouterr().err


def test_a_run_at_one_measurement_warns_at_another(tmp_path, own_closing, capsys):
    tree = AMORTISED | {"actor": {"batch_size": 64}, "updates": 5}
    tree["replay"] = {"min_size": 128, "samples_per_insert": 2}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert _rtb("train", tmp_path / "one.yaml", "--run", tmp_path / "run") == 0
    sample(tmp_path / "run", 10, 0, None, _file(tmp_path, np.zeros(2)))
    assert "this run was trained at its own measurements alone" in capsys.readouterr().err


def test_a_posterior_that_does_not_see_y_is_drawn_from_at_its_own_measurement_alone(
    amortised, tmp_path, capsys, monkeypatch, problem
):
    blind, own = tmp_path / "blind.npz", problem.measurements[0].numpy()
    monkeypatch.setattr(ControlPosterior, "sees_measurement", property(lambda _: False))
    words = ("--num", 3, "--measurement")
    assert _rtb("sample", amortised, *words, _file(tmp_path, own, "own.npy"), "--output", blind) == 0
    capsys.readouterr()
    for command in ("sample", "evaluate"):
        assert _rtb(command, amortised, *words, _file(tmp_path, own + 0.1, "other.npy")) == 2
        assert "does not see y, so it is that of its own measurement alone" in capsys.readouterr().err


# --- going on at one measurement ---


def test_training_goes_on_from_a_run_at_the_measurement_of_a_file(amortised, tmp_path, own_closing, problem):
    value = np.array([1.5, -1.0], dtype=np.float32)
    file, run = _file(tmp_path, value), tmp_path / "tuned"
    flags = ["--updates", "40", "--learner.warmup-updates", "1"]
    assert _rtb("train", "--init", amortised, "--measurement", file, "--run", run, *flags) == 0
    file.unlink()  # the run has a copy
    opened, config = open_run(run)
    assert config.actor.simulated_measurements == 0 and config.learner.objective == "vargrad" and config.updates == 40
    np.testing.assert_array_equal(np.load(opened.measurement), value)
    exact = problem.at(torch.from_numpy(value)[None]).solved().exact[0]
    sample(run, 4000, 0, tmp_path / "after.npz")
    sample(amortised, 4000, 0, tmp_path / "before.npz", _file(tmp_path, value))
    gaps = []
    for name in ("before.npz", "after.npz"):
        with np.load(tmp_path / name) as found:
            gaps.append(exact.log_partition - found["log_weight"].mean())
    assert gaps[1] < gaps[0] + 0.02 and gaps[1] < 0.3
    resumed = resume(run, quiet=True)  # reads the copies, and has nothing left to do
    assert CheckpointStore(resumed.checkpoints).load().step == 40


def test_training_starts_from_the_averaged_weights_of_the_run(amortised, tmp_path, own_closing):
    run = tmp_path / "tuned"
    assert (
        _rtb("train", "--init", amortised, "--run", run, "--updates", "1", "--learner.warmup-updates", "1000000") == 0
    )
    average = CheckpointStore(amortised / "checkpoints").load().parts["learner"].arrays["average"]
    arrays = CheckpointStore(run / "checkpoints").load().parts["learner"].arrays
    found = np.concatenate([arrays[f"snapshot.0.posterior.{name}"].ravel() for name in _names(amortised)])
    np.testing.assert_allclose(found, average, rtol=1e-6, atol=1e-7)


def _names(run):
    from system.assembly import build_posterior, build_problem

    _, config = open_run(run)
    return [name for name, _ in build_posterior(config, build_problem(config)).named_parameters()]


def test_another_network_is_refused_by_the_name_of_the_first_mismatch_and_leaves_no_run(
    amortised, tmp_path, own_closing, capsys
):
    run = tmp_path / "other"
    assert _rtb("train", "--init", amortised, "--run", run, "--posterior.hidden", "16") == 2
    error = capsys.readouterr().err
    assert "network.body.0.weight has shape (32, " in error and "(16, " in error
    assert not run.exists()


def test_weights_of_another_guide_are_refused_by_name_though_they_fit(amortised, tmp_path, own_closing, capsys):
    _, config = open_run(amortised)
    other = "state" if config.posterior.likelihood_gradient != "state" else "estimate"
    for gradient in (other, "pseudoinverse"):
        run = tmp_path / gradient
        assert _rtb("train", "--init", amortised, "--run", run, "--posterior.likelihood-gradient", gradient) == 2
        error = capsys.readouterr().err
        assert f"has posterior.likelihood_gradient {config.posterior.likelihood_gradient}, and this" in error
        assert f"configuration {gradient}: " in error and error.count("\n") == 1
        assert not run.exists()


def test_training_at_a_file_unlike_all_simulated_measurements_warns_of_its_units(
    amortised, tmp_path, own_closing, capsys
):
    flags = ["--updates", "1"]
    for value, warned in (([1.5, -1.0], False), ([255.0, 255.0], True)):
        file = _file(tmp_path, np.array(value, dtype=np.float32))
        run = tmp_path / f"run-{warned}"
        assert _rtb("train", "--init", amortised, "--measurement", file, "--run", run, *flags) == 0
        assert ("rtb: warning: the measurement is " in capsys.readouterr().err) == warned


def test_a_run_that_is_none_is_refused(tmp_path, capsys):
    assert _rtb("train", "--init", tmp_path / "gone") == 2
    assert "expected the directory of a run" in capsys.readouterr().err
    shutil.copy(__file__, tmp_path / "file")
    assert _rtb("train") == 2


def test_fine_tuning_is_a_tenth_of_the_run_on_policy_at_the_problem_s_own_measurement(amortised):
    _, config = open_run(amortised)
    tuned = config.fine_tuning("there")
    assert (tuned.updates, tuned.learner.learning_rate, tuned.init) == (40, 5e-4, "there")
    assert tuned.actor.kinds == ("on-policy",) and tuned.replay.group_size == 1
    assert tuned.learner.pretraining.until == 0.0 and tuned.posterior == config.posterior
    shipped = load_config(Path("configs/experiments/digits_half_amortised.yaml"), [])
    pace, tuned = ReplayConfig(), shipped.fine_tuning("there")
    for key in ("newest_share", "samples_per_insert"):
        assert getattr(tuned.replay, key) == getattr(pace, key) != getattr(shipped.replay, key)
    assert tuned.evaluation.calibration_pairs == 0 < shipped.evaluation.calibration_pairs


def test_going_on_at_more_measurements_than_a_batch_has_groups_is_refused(amortised):
    _, config = open_run(amortised)
    problem = build_problem(config)
    tuned = config.fine_tuning(str(amortised))
    many = problem.at(problem.measurements.expand(33, -1))
    with pytest.raises(ConfigError, match=r"64 has 1.9 of each of the problem.s 33: raise replay.group_size"):
        build_learner(dataclasses.replace(tuned, init=None), many)
    build_learner(dataclasses.replace(tuned, init=None), problem.at(problem.measurements.expand(32, -1)))
    build_learner(config, many)  # measurements of its own, in groups


# --- judging ---


def test_a_run_of_several_measurements_is_judged_at_each_and_its_calibration_over_simulated_pairs(amortised, problem):
    run, config = open_run(amortised)
    checkpoint = CheckpointStore(run.checkpoints).load()
    weights = checkpoint.parts["learner"].arrays["average"].astype(np.float32)
    generator = torch.Generator().manual_seed(0)
    many = problem.at(problem.simulate(problem.prior.denoiser.sample(20, generator), generator)).solved()
    settings = dataclasses.replace(config.evaluation, per_measurement=200, calibration_pairs=400)
    config = dataclasses.replace(config, evaluation=settings)
    each, calibration = judge_each(config, many, weights)
    assert each.elbo.shape == (20,) and each.log_partition_error < 0.1 and 0 < each.elbo_gap < 1
    assert calibration.pairs == 400 and calibration.deviation < 1.5 * calibration.by_chance
    # Untrained, the posterior is the prior.
    untrained, off = judge_each(config, many, 0 * weights)
    assert untrained.elbo_gap > 5 * each.elbo_gap and off.deviation > 3 * calibration.by_chance
    assert judge_each(dataclasses.replace(config, evaluation=EvaluationConfig()), problem, weights) == (None, None)


def test_calibration_where_nothing_can_be_simulated_is_refused():
    config = config_from_tree({"problem": {"name": "funnel"}, "evaluation": {"calibration_pairs": 10}}, "test")
    problem = build_problem(config)
    weights = torch.nn.utils.parameters_to_vector(build_posterior(config, problem).parameters()).detach().numpy()
    with pytest.raises(ConfigError, match="calibration_pairs needs a likelihood that measurements can be drawn from"):
        judge_each(config, problem, weights)
