"""The clock of beta: its schedule, and how it waits for the effective sample size."""

import json

import numpy as np
import pytest

from learner.annealing import SMOOTHING, Annealing

POOR = np.array([-100.0, 0.0, 0.0, 0.0])  # one weight has all: an effective sample size of a quarter
EVEN = np.zeros(4)


def run(annealing, residual, begin, end, steps=100):
    for progress in np.linspace(begin, end, steps + 1)[1:]:
        annealing.learn(progress, residual)
    return annealing


def test_without_a_threshold_it_is_linear_whatever_the_residuals_are():
    annealing = run(Annealing(0.2, 0.5, 0.0), POOR, 0.0, 0.4)
    assert [annealing.beta(at) for at in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert annealing.held_up == 0


def test_with_enough_effective_samples_it_keeps_to_its_schedule():
    assert run(Annealing(0.2, 0.5, 0.9), EVEN, 0.0, 0.4).held_up == 0


def test_below_the_threshold_time_slows_in_proportion():
    # A quarter of the samples at a threshold of a half: half the pace, once the mean has come down.
    annealing = run(Annealing(0.0, 0.5, 0.5), POOR, 0.0, 0.1, steps=1000)
    before = annealing.held_up
    run(annealing, POOR, 0.1, 0.3, steps=1000)
    assert annealing.held_up - before == pytest.approx(0.1, abs=1e-9)
    assert annealing.beta(0.3) == pytest.approx((0.3 - annealing.held_up) / 0.5)


def test_it_goes_on_when_the_samples_are_back_and_never_makes_up_for_it():
    annealing = run(Annealing(0.0, 0.5, 0.5), POOR, 0.0, 0.2)
    run(annealing, EVEN, 0.2, 0.3)
    held_up = annealing.held_up
    run(annealing, EVEN, 0.3, 0.4)
    assert annealing.held_up == held_up > 0.05
    assert annealing.beta(0.5 + held_up) == 1.0 > annealing.beta(0.5 + held_up - 0.01)


def test_one_poor_batch_hardly_slows_it_and_one_that_is_not_finite_not_at_all():
    annealing = Annealing(0.0, 1.0, 0.5)
    annealing.learn(0.01, POOR)
    assert annealing.held_up == 0  # the mean is SMOOTHING + (1 - SMOOTHING) / 4, above a half
    assert SMOOTHING + (1 - SMOOTHING) / 4 > 0.5
    annealing.learn(0.02, np.array([np.nan, 0.0]))
    assert annealing.held_up == 0


def test_time_that_passes_without_residuals_is_not_held_up_afterwards():
    annealing = run(Annealing(0.0, 1.0, 0.9), POOR, 0.0, 0.1)
    before = annealing.held_up
    annealing.learn(0.6, None)
    annealing.learn(0.61, POOR)
    assert annealing.held_up - before < 0.011


def test_after_beta_is_one_nothing_is_held_up():
    annealing = run(Annealing(0.5, 0.0, 0.9), POOR, 0.0, 1.0)
    assert annealing.held_up == 0 and annealing.beta(0.5) == 1.0


def test_restored_it_goes_on_as_it_would_have():
    annealing = run(Annealing(0.1, 0.8, 0.5), POOR, 0.0, 0.3)
    other = Annealing(0.1, 0.8, 0.5)
    other.load_state_dict(json.loads(json.dumps(annealing.state_dict())))
    for each in (annealing, other):
        run(each, POOR, 0.3, 0.5)
    assert other.state_dict() == annealing.state_dict()
