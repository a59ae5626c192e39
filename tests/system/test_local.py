"""The local runner: a pure function of its configuration, however often it is interrupted."""

import dataclasses

import numpy as np
import pytest
import torch

import system.local
from envs.asked import LikelihoodCalls
from envs.exact.chain import ChainPosterior
from system.assembly import build_problem
from system.config_file import config_from_tree
from system.errors import ConfigError, RunnerError
from system.judge import draw
from system.local import LocalRunner
from system.part import read_part
from system.replay.messages import InsertReply

TREE = {
    "updates": 60,
    "problem": {"name": "gaussian-linear", "dim": 2, "measurement_dim": 1, "num_steps": 5},
    "posterior": {"hidden": 8, "depth": 1},
    "actor": {"batch_size": 8},
    "learner": {"batch_size": 8, "warmup_updates": 5},
    "replay": {"min_size": 16, "newest_window": 32, "max_items": 64, "priority": "residual"},
}


def _runner(**changes):
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in TREE.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    config = config_from_tree(tree, "test")
    return LocalRunner(config, build_problem(config))


def _turns(runner, count):
    for _ in range(count):
        runner._turn()


def _finish(runner):
    while not runner.finished:
        runner.advance()
    return runner


def _save(runner, directory):
    directory.mkdir()
    return {name: read_part(directory, name) for name in runner.save(directory)}


def _state(runner):
    return {
        "learner": runner.learner.state_dict(),
        "actor": runner.actor.state_dict(),
        "replay": runner.shard.state_dict(),
    }


def _assert_equal(ours, theirs):
    for part, (arrays, scalars) in ours.items():
        assert theirs[part][1] == scalars, part
        assert theirs[part][0].keys() == arrays.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(theirs[part][0][name], value, err_msg=f"{part}.{name}")


def test_two_runs_with_the_same_seed_end_in_the_same_bits():
    ours, theirs = (_finish(_runner()) for _ in range(2))
    _assert_equal(_state(ours), _state(theirs))
    assert ours.updates == 60 and ours.trajectories == theirs.trajectories > 100


@pytest.mark.parametrize("changes", [{"seed": 1}, {"learner__learning_rate": 2e-3}])
def test_another_seed_or_setting_ends_in_other_weights(changes):
    assert (_finish(_runner()).weights() != _finish(_runner(**changes)).weights()).any()


PRETRAINED = {
    "replay__priority": "importance",
    "learner__pretraining": {"until": 0.4, "batch_size": 24, "steps_per_path": 2},
}


FILTERING = {"replay__evict_by": "likelihood", "replay__newest_share": 0.0}


@pytest.mark.parametrize(
    ("interruptions", "changes"),
    [
        ([1], {}),
        ([7], {}),
        ([33], {}),
        ([5, 6, 50], {}),
        (list(range(1, 40, 3)), {}),
        ([20, 41], {"replay__store": "endpoints", "replay__priority": {"rank": 0.5, "reshuffled": 0.5}}),
        ([20, 41], {"replay__evict_by": "likelihood"}),
        ([20, 41], FILTERING),
        ([12, 20, 60], PRETRAINED),
    ],
)
def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, interruptions, changes):
    """Weights, averages, Adam's moments, replay with its masses, limiter, and every random stream."""
    straight = _runner(**changes)
    _turns(straight, 80)

    runner, done = _runner(**changes), 0
    for number, turn in enumerate(interruptions):
        _turns(runner, turn - done)
        done = turn
        parts = _save(runner, tmp_path / str(number))
        runner = _runner(**changes)
        runner.load(parts)
    _turns(runner, 80 - done)
    _assert_equal(_state(runner), _state(straight))
    assert runner.trajectories == straight.trajectories

    ours, theirs = (each.shard.sample(8) for each in (runner, straight))
    np.testing.assert_array_equal(ours.ids.slot, theirs.ids.slot)
    np.testing.assert_array_equal(ours.trajectory.samples, theirs.trajectory.samples)
    np.testing.assert_array_equal(runner.actor.act().states, straight.actor.act().states)


def test_items_that_would_be_evicted_at_once_are_not_inserted():
    runner = _runner(**FILTERING)
    _turns(runner, 80)
    stats = runner.shard.stats()
    assert runner._counters()["replay/filtered"] == stats.filtered > 0
    assert stats.inserts == runner.trajectories == stats.size + stats.evictions + stats.filtered
    assert runner._refused == 0


JOINT = {
    "actor__mixture": {"joint": 0.5, "on-policy": 0.25, "pigdm": 0.25},
    "actor__final_mixture": {"joint": 0.5, "on-policy": 0.5},
    "learner__forward_kl": 1.0,
    "replay__priority": "importance",
}


def test_an_interrupted_run_with_joint_simulation_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    straight, runner = _runner(**JOINT), _runner(**JOINT)
    _turns(straight, 60)
    _turns(runner, 31)
    parts = _save(runner, tmp_path / "saved")
    runner = _runner(**JOINT)
    runner.load(parts)
    _turns(runner, 29)
    _assert_equal(_state(runner), _state(straight))
    stored = straight.shard.state_dict()[0]
    assert 0.2 < np.mean(stored["storage.measurement_id"] < 0) < 0.8
    assert stored["storage.measurement"].shape == (64, 1)
    assert np.isfinite(straight._metrics["learner/joint_log_weight"])


def test_a_posterior_of_joint_paths_alone_is_right_at_a_measurement_it_never_saw():
    """The problem's own y and others: the mean of x follows y by several posterior standard deviations."""
    only = {"mixture": {"joint": 1.0}, "final_mixture": {"joint": 1.0}}
    runner = _finish(
        _runner(
            updates=400,
            problem={"name": "gaussian-linear", "dim": 4, "measurement_dim": 2, "num_steps": 10},
            posterior={"hidden": 32, "depth": 2},
            actor={"batch_size": 64, **only},
            learner={"batch_size": 64, "warmup_updates": 20, "learning_rate": 5e-3, "forward_kl": 1.0},
            replay={"priority": "importance", "min_size": 128, "samples_per_insert": 2},
        )
    )
    problem, posterior = runner.actor.problem, runner.actor.posterior
    torch.nn.utils.vector_to_parameters(torch.from_numpy(runner.weights()), posterior.parameters())
    prior, likelihood, own = problem.prior, problem.likelihood, problem.measurements
    moved = []
    for measurement in (own, -own, own + 1.5):
        exact = ChainPosterior(prior, likelihood.operator.matrix, likelihood.noise_std, measurement[0])
        at_y = dataclasses.replace(problem, measurements=measurement, exact=(exact,))
        draws = draw(at_y, posterior, 4_000, seed=1)
        samples, spread = draws.samples.double(), exact.variance.sqrt()
        assert float(((samples.mean(0) - exact.mean) / spread).abs().max()) < 0.25
        assert (samples.std(0) / spread).numpy() == pytest.approx(np.ones(4), abs=0.25)
        assert exact.log_partition - float(draws.log_weight.mean()) < 0.6
        moved.append(float(((exact.mean - prior.denoiser.mean) / spread).abs().max()))
    assert min(moved) > 1.4 and max(moved) > 2.5  # so far is the prior's mean off
    assert "learner/residual_std" not in runner._metrics and runner._metrics["learner/loss"] == 0.0


def test_joint_simulation_is_refused_at_the_start_where_nothing_can_be_simulated():
    with pytest.raises(ConfigError, match="actor: joint needs a likelihood that measurements can be drawn from"):
        _runner(
            actor__mixture={"joint": 1.0},
            learner__forward_kl=1.0,
            replay__priority="importance",
            problem={"name": "funnel", "num_steps": 5},
        )


def test_a_save_changes_nothing_of_the_run(tmp_path):
    straight, saved = _runner(), _runner()
    for turn in range(20):
        _turns(straight, 1)
        _turns(saved, 1)
        if turn % 5 == 0:
            _save(saved, tmp_path / str(turn))
    _assert_equal(_state(saved), _state(straight))


@pytest.mark.parametrize("target", [0.5, 1.0, 4.0, 16.0])
def test_samples_per_insert_are_within_5_percent_of_the_target(target):
    runner = _finish(_runner(updates=200, replay__samples_per_insert=target, replay__max_items=None))
    stats = runner.shard.stats()
    assert stats.samples == 200 * 8
    assert stats.samples / (stats.inserts - 16) == pytest.approx(target, rel=0.05)
    assert runner.advance()["replay/samples_per_insert"] == pytest.approx(target, rel=0.05)


def test_the_run_ends_at_its_budget_of_updates_and_says_so():
    runner = _runner(updates=7)
    assert not runner.finished and runner.progress == 0.0
    metrics = _finish(runner).advance()
    assert runner.updates == 7 and runner.progress == 1.0 and metrics["system/progress"] == 1.0
    assert metrics["learner/updates"] == 7 and metrics["actor/trajectories"] == runner.trajectories
    assert np.isfinite(metrics["learner/loss"])


@pytest.mark.parametrize(("name", "source"), [("wall", "perf_counter"), ("cpu", "process_time")])
def test_the_run_ends_at_its_budget_of_seconds_those_before_a_resume_included(tmp_path, monkeypatch, name, source):
    clock = [100.0]
    monkeypatch.setattr(system.local.time, source, lambda: clock[0])
    runner = _runner(max_seconds=10.0, updates=10**6, clock=name)
    runner._start = clock[0]
    clock[0] += 4.0
    assert runner.seconds == 4.0 and runner.progress == pytest.approx(0.4)
    resumed = _runner(max_seconds=10.0, updates=10**6, clock=name)
    resumed.load(_save(runner, tmp_path / "saved"))
    assert resumed.seconds == 4.0  # the clock stands still until it trains
    resumed._start = clock[0]
    clock[0] += 6.5
    assert resumed.finished and resumed.seconds == 10.5


def test_evaluated_weights_are_the_averaged_ones():
    runner = _finish(_runner())
    assert (runner.weights() == runner.learner.weights(averaged=True)).all()
    assert (runner.weights() != runner.learner.weights()).any()


def test_the_actor_uses_the_newest_weights_of_the_learner():
    runner = _runner()
    _turns(runner, 30)
    while runner.shard.sample(8) is not None:
        pass
    runner._turn()
    assert runner.actor.version == runner.learner.updates > 0
    actor = np.concatenate([value.detach().numpy().ravel() for value in runner.actor.posterior.parameters()])
    assert (actor == runner.learner.weights()).all()


def test_the_actor_uses_the_averaged_weights_where_asked_to(monkeypatch):
    runner, held = _runner(actor__weights="averaged"), []
    update = runner.learner.update
    monkeypatch.setattr(
        runner.learner, "update", lambda *rest, **known: held.append(known["versions_hold"]) or update(*rest, **known)
    )
    _turns(runner, 40)
    assert held and not any(held)  # of no trajectory is the density known from its number
    weights, version = runner.weights_for_actor()
    assert (weights == runner.learner.weights(averaged=True)).all() and version == runner.updates
    assert not (weights == runner.learner.weights()).all()


def test_the_learners_residuals_become_priorities():
    runner, heard = _runner(), []
    original = runner.shard.update_priorities
    runner.shard.update_priorities = lambda ids, residuals: heard.append((ids, residuals)) or original(ids, residuals)
    _turns(runner, 40)
    assert len(heard) == runner.updates and all(len(ids) == len(residuals) == 8 for ids, residuals in heard)
    ids, residuals = heard[-1]
    masses = runner.shard.state_dict()[0]["priority.residual.mass"][ids.slot]
    last = {slot: row for row, slot in enumerate(ids.slot.tolist())}  # drawn twice, an item keeps its last residual
    assert len(set(masses.tolist())) > 1
    rows = sorted(last.values(), key=lambda row: abs(residuals[row]))
    assert sorted(masses[rows].tolist()) == masses[rows].tolist()  # a larger residual, a larger mass


def test_a_byte_budget_that_holds_too_little_is_refused_with_what_it_would_take():
    runner = _runner(replay__capacity_bytes=1000, replay__max_items=None)
    with pytest.raises(ConfigError, match=r"replay: a budget of 1000 bytes holds .* but at least 16 are needed; raise"):
        runner.advance()


def test_a_likelihood_that_is_never_finite_ends_the_run_instead_of_rolling_out_for_ever(monkeypatch):
    runner = _runner()
    monkeypatch.setattr(
        type(runner.actor.problem.likelihood), "log_prob", lambda _self, value, _y: value[:, 0] * np.nan
    )
    message = "not one trajectory of the last 20 rollouts has finite states and a finite log-likelihood; check"
    what = (
        r" the likelihood of problem 'gaussian-linear' \(GaussianLikelihood\): of the last (\d+) trajectories \1 have "
    )
    with pytest.raises(RunnerError, match=message + what + r"finite states, and 0 a finite log p\(y \| x\)"):
        runner.advance()


def test_a_likelihood_that_is_not_a_number_now_and_then_is_counted_by_kind_and_the_run_goes_on(monkeypatch):
    runner = _runner(actor__mixture={"prior": 0.5, "on-policy": 0.5}, actor__final_mixture={"prior": 1.0})
    likelihood = type(runner.actor.problem.likelihood)
    sound = likelihood.log_prob

    def fragile(self, value, measurement):
        broken = torch.where(value[:, 0] > 0, torch.nan, torch.inf)
        return torch.where(value[:, 0].abs() > 0.5, broken, sound(self, value, measurement))

    monkeypatch.setattr(likelihood, "log_prob", fragile)
    metrics = _finish(runner).advance()
    invalid = [metrics[f"actor/{kind}/invalid"] for kind in ("prior", "on-policy")]
    assert min(invalid) > 0 and sum(invalid) == metrics["replay/refused"]
    assert metrics["actor/trajectories"] == metrics["replay/refused"] + metrics["replay/inserts"]
    assert np.isfinite(runner.weights()).all()


def test_a_replay_that_takes_and_gives_nothing_ends_the_run_instead_of_hanging(monkeypatch):
    runner = _runner()
    monkeypatch.setattr(runner.shard, "sample", lambda _, newest: None)
    monkeypatch.setattr(runner.shard, "insert", lambda _, filtered: InsertReply(accepted=False, retry_after=0.1))
    with pytest.raises(RunnerError, match=r"replay refuses samples and inserts at once; raise replay\.tolerance"):
        runner.advance()


def test_pretraining_draws_larger_batches_without_the_newest_share_at_the_same_pace(monkeypatch):
    runner = _runner(**PRETRAINED)
    drawn, sample = [], runner.shard.sample

    def spy(size, *, newest):
        batch = sample(size, newest=newest)
        if batch is not None:
            drawn.append((size, newest))
        return batch

    monkeypatch.setattr(runner.shard, "sample", spy)
    _finish(runner)
    assert drawn == [(24, False)] * 24 + [(8, True)] * 36
    assert abs(runner.shard.stats().samples_per_insert_error) < 0.1
    assert runner.shard.stats().samples == 60 * 8  # as many as without pretraining


def _counted(runner):
    """The number of x that the runner's likelihood is asked about from now on, by its own methods."""
    likelihood, asked = runner.problem.likelihood, []
    for name in ("log_prob", "gradient"):
        method = getattr(likelihood, name)

        def watched(value, measurement, method=method):
            asked.append(len(value))
            return method(value, measurement)

        setattr(likelihood, name, watched)
    return asked


@pytest.mark.parametrize(
    ("budget", "a_turn", "changes"),
    [
        (300, 8, {"posterior__likelihood_gradient": "none"}),
        (
            1_500,
            8 + 20 * 8,
            {
                "posterior__likelihood_gradient": "none",
                "actor__mixture": {"path-search": 1.0},
                "actor__final_mixture": {"path-search": 1.0},
                "actor__path_search": {"sweeps": 2},
            },
        ),
    ],
)
def test_a_run_ends_when_its_likelihood_calls_are_spent_with_one_turn_over_at_most(budget, a_turn, changes):
    runner = _runner(max_likelihood_calls=budget, updates=10**6, **changes)
    asked = _counted(runner)
    metrics = _finish(runner).advance()
    assert runner.updates > 20 and sum(asked) == metrics["system/likelihood_calls"] == runner.problem.calls.count
    assert budget <= metrics["system/likelihood_calls"] < budget + a_turn
    assert metrics["system/progress"] == 1.0


def test_gradients_that_guide_actor_and_learner_are_likelihood_calls_too():
    runner = _runner(max_likelihood_calls=4_000, updates=10**6)
    assert runner.actor.posterior.uses_guidance
    _turns(runner, 1)
    assert runner.problem.calls.count >= 8 * (5 + 1)  # a gradient at every step, and the density of x
    _finish(runner)
    assert 4_000 <= runner.problem.calls.count < 4_000 + 8 * 5 * 3


def test_likelihood_calls_are_the_same_when_the_run_is_resumed_and_those_of_the_judge_are_not_among_them(tmp_path):
    changes = {"max_likelihood_calls": 300, "updates": 10**6, "posterior__likelihood_gradient": "none"}
    straight, runner = _finish(_runner(**changes)), _runner(**changes)
    _turns(runner, 30)
    before = runner.problem.calls.count
    resumed = _runner(**changes)
    judged = resumed.problem
    resumed.load(_save(runner, tmp_path / "saved"))
    assert resumed.problem.calls.count == before > 0 and 0 < resumed.progress < 1
    draw(dataclasses.replace(judged, calls=LikelihoodCalls()), resumed.actor.posterior, 64, seed=0)
    assert resumed.problem.calls.count == before
    _assert_equal(_state(_finish(resumed)), _state(straight))
    assert resumed.problem.calls.count == straight.problem.calls.count


def test_each_likelihood_call_is_learned_from_as_often_as_samples_per_insert_says():
    few, many = (
        _finish(
            _runner(
                max_likelihood_calls=1_000,
                updates=10**6,
                posterior__likelihood_gradient="none",
                replay__samples_per_insert=pace,
            )
        )
        for pace in (2.0, 8.0)
    )
    assert few.trajectories == many.trajectories == 1_000
    assert many.updates / few.updates == pytest.approx(4, rel=0.1)
