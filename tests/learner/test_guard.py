"""The stability guard: what it sets aside, when it rolls back, and where it ends."""

import dataclasses
import json
import logging
import math
import re

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig
from diffusion.posterior import ControlPosterior
from learner import Diverged, GuardConfig, Learner, LearnerConfig
from learner.guard import LEARNING, SNAPSHOT_INTERVAL, Guard, Verdict

TAKE, SET_ASIDE, ROLL_BACK = Verdict.TAKE, Verdict.SET_ASIDE, Verdict.ROLL_BACK


def residual(scale, count=65):
    """Residuals whose median of |delta| is `scale`."""
    return scale * np.linspace(-2, 2, count)


def settled(**options):
    """A guard that has seen enough batches of scale 1 to know what is normal."""
    guard = Guard(GuardConfig(**options))
    assert [guard.examine(1.0, 1.0, residual(1.0)) for _ in range(LEARNING)] == [TAKE] * LEARNING
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_is_set_aside_from_the_first_batch_on(loss, norm):
    guard = Guard(GuardConfig(factor=None))
    assert guard.examine(loss, norm, residual(1.0)) is SET_ASIDE
    assert guard.examine(1.0, 1.0, residual(math.nan)) is SET_ASIDE
    assert guard.set_aside == 2


def test_a_residual_scale_ten_times_the_normal_one_is_set_aside_and_half_of_it_is_taken():
    guard = settled()
    assert guard.normal_scale == pytest.approx(1.0, rel=0.02)
    assert guard.examine(1.0, 1.0, residual(5.0)) is TAKE
    assert guard.examine(1.0, 1.0, residual(20.0)) is SET_ASIDE
    assert settled(factor=None).examine(1.0, 1.0, residual(1e6)) is TAKE


def test_a_few_paths_far_out_are_no_reason():
    values = residual(1.0)
    values[:20] = 1e6
    assert settled().examine(1.0, 1.0, values) is TAKE


def test_before_it_knows_what_is_normal_and_while_the_scale_falls_everything_is_taken():
    guard = Guard(GuardConfig())
    assert {guard.examine(1.0, 1.0, residual(1000.0 * 0.97**index)) for index in range(400)} == {TAKE}
    assert guard.normal_scale < 0.1


def test_a_scale_that_doubles_in_a_thousand_batches_is_followed():
    guard = settled()
    assert {guard.examine(1.0, 1.0, residual(2 ** (index / 1000))) for index in range(6000)} == {TAKE}


def test_batches_set_aside_in_a_row_roll_back_and_single_ones_do_not():
    guard = settled(patience=3)
    for _ in range(10):
        assert guard.examine(1.0, 1.0, residual(50.0)) is SET_ASIDE
        assert guard.examine(1.0, 1.0, residual(50.0)) is SET_ASIDE
        assert guard.examine(1.0, 1.0, residual(1.0)) is TAKE
    assert [guard.examine(1.0, 1.0, residual(50.0)) for _ in range(3)] == [SET_ASIDE, SET_ASIDE, ROLL_BACK]
    assert (guard.rollbacks, guard.step_factor) == (1, 0.5)
    assert guard.examine(1.0, 1.0, residual(50.0)) is TAKE  # what is normal is found out anew


def test_after_the_last_rollback_the_run_ends_with_the_numbers():
    guard = Guard(GuardConfig(patience=2, max_rollbacks=1))
    assert [guard.examine(math.nan, 1.0, residual(1.0)) for _ in range(3)] == [SET_ASIDE, ROLL_BACK, SET_ASIDE]
    with pytest.raises(Diverged, match=r"after 1 rollbacks 2 batches in a row .* \(loss nan, .* lower learner"):
        guard.examine(math.nan, 1.0, residual(1.0))


def test_a_restored_guard_goes_on_as_it_would_have():
    ours = settled(patience=2)
    ours.examine(1.0, 1.0, residual(50.0))
    theirs = Guard(ours.config)
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    for scale in (2.0, 30.0, 30.0, 1.0, 3.0, 40.0):
        assert ours.examine(1.0, 1.0, residual(scale)) is theirs.examine(1.0, 1.0, residual(scale))
    assert ours.state_dict() == theirs.state_dict()
    fresh = Guard(ours.config)
    fresh.load_state_dict(json.loads(json.dumps(Guard(ours.config).state_dict())))
    assert fresh.normal_scale == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "learner.guard.factor must be above 1 or null, got 1.0"),
        ({"patience": 0}, "patience must be at least 1 and max_rollbacks at least 0, got 0 and 5"),
        ({"max_rollbacks": -1}, "got 5 and -1"),
        ({"step_cut": 0.0}, r"learner.guard.step_cut must be within \(0, 1\], got 0.0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GuardConfig(**options)


@pytest.fixture
def learner(gaussian_problem):
    """A learner that rolls back after two batches, and what makes its batches."""
    torch.manual_seed(0)
    posterior, other = (
        ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8, depth=1) for _ in range(2)
    )
    settings = LearnerConfig(warmup_updates=10, guard=GuardConfig(patience=2))
    actor = Actor(gaussian_problem, other, ActorConfig(batch_size=16), seed=0)
    return Learner(gaussian_problem, posterior, settings), actor


def test_a_rollback_restores_the_older_snapshot_halves_the_step_and_warms_up_again(learner, caplog):
    learner, actor = learner
    for _ in range(SNAPSHOT_INTERVAL):
        learner.update(actor.act(), 0.0)
    older = learner.weights(), learner.weights(averaged=True)
    for _ in range(SNAPSHOT_INTERVAL + 3):
        learner.update(actor.act(), 0.0)
    assert (learner.weights() != older[0]).any()
    good = actor.act()
    bad = dataclasses.replace(good, log_likelihood=np.full(16, np.nan, np.float32))
    with caplog.at_level(logging.WARNING):
        assert [learner.update(bad, 0.0).verdict for _ in range(2)] == [SET_ASIDE, ROLL_BACK]
    said = r"rolled back at update \d+, number 1 \(loss nan, gradient norm .*, median residual nan"
    assert re.search(said, caplog.text)
    np.testing.assert_array_equal(learner.weights(), older[0])
    np.testing.assert_array_equal(learner.weights(averaged=True), older[1])
    assert learner.updates == 2 * SNAPSHOT_INTERVAL + 5 and learner.learning_rate_factor(0.0) == 0.0
    for _ in range(10):
        learner.update(good, 0.0)
    assert learner.learning_rate_factor(0.0) == pytest.approx(0.5)


def test_before_the_first_snapshot_it_goes_back_to_the_start(learner):
    learner, actor = learner
    start = learner.weights()
    learner.update(actor.act(), 0.0)
    bad = dataclasses.replace(actor.act(), log_likelihood=np.full(16, np.nan, np.float32))
    for _ in range(2):
        learner.update(bad, 0.0)
    np.testing.assert_array_equal(learner.weights(), start)


def test_a_scale_that_grows_by_a_percent_a_batch_is_set_aside_in_the_end():
    """What is normal rises by a thousandth a batch at most: a running mean would follow this for ever."""
    guard = settled()
    verdicts = [guard.examine(1.0, 1.0, residual(1.01**index)) for index in range(600)]
    assert verdicts[:200] == [TAKE] * 200
    assert SET_ASIDE in verdicts
