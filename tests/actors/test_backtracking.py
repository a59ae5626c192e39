"""Backtracking: how deep it goes. That it leaves the posterior invariant: `test_stored_paths`."""

import numpy as np
import pytest
import torch

from actors.backtracking import Backtracking, BacktrackingConfig
from diffusion.posterior import ControlPosterior


@pytest.fixture
def posterior(gaussian_problem):
    """One whose suffixes are accepted 99 % of the time at depth 1 and a few times in a hundred at depth 10."""
    torch.manual_seed(0)
    posterior = ControlPosterior(gaussian_problem.prior, (2,), None, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=1.0)
    return posterior


def _turns(problem, posterior, kind, starts, count):
    generator, made = torch.Generator().manual_seed(3), []
    for _ in range(count):
        made.append(kind.explore_from(problem, posterior, starts(1000, "age"), 0.0, generator).acceptance)
    return made


@pytest.mark.parametrize(("first", "target"), [(1.0, 0.3), (0.1, 0.3), (1.0, 0.6)])
def test_the_depth_settles_where_the_acceptance_is_the_target_from_above_and_below(
    gaussian_problem, posterior, exact_starts, first, target
):
    kind = Backtracking(BacktrackingConfig(depth=first, target_acceptance=target), 10)
    before = _turns(gaussian_problem, posterior, kind, exact_starts, 1)[0]
    _turns(gaussian_problem, posterior, kind, exact_starts, 40)
    settled = np.mean(_turns(gaussian_problem, posterior, kind, exact_starts, 40))
    assert settled == pytest.approx(target, abs=0.05)
    assert abs(before - target) > 0.1


def test_a_target_out_of_reach_takes_the_depth_to_one_transition_or_all(gaussian_problem, posterior, exact_starts):
    for target, depth in ((0.9999, 1.0), (1e-6, 10.0)):
        kind = Backtracking(BacktrackingConfig(target_acceptance=target, depth=0.5), 10)
        _turns(gaussian_problem, posterior, kind, exact_starts, 120)
        assert kind.state_dict() == ({}, {"depth": pytest.approx(depth, abs=0.5)})
        assert 1.0 <= kind.state_dict()[1]["depth"] <= 10.0


def test_a_fixed_depth_stays_and_says_how_many_transitions_are_redrawn(gaussian_problem, posterior, exact_starts):
    kind = Backtracking(BacktrackingConfig(form="fixed", depth=0.3), 10)
    _turns(gaussian_problem, posterior, kind, exact_starts, 3)
    assert kind._moves() == [(7, 10)]
    assert Backtracking(BacktrackingConfig(form="fixed", depth=0.001), 10)._moves() == [(9, 10)]
    assert Backtracking(BacktrackingConfig(form="fixed", depth=1.0), 10)._moves() == [(0, 10)]


def test_restart_goes_through_its_interval_as_often_as_said():
    restart = {"form": "restart", "rounds": 3}
    assert Backtracking(BacktrackingConfig(**restart, noisy_end=0.2, clean_end=0.6), 50)._moves() == [(10, 30)] * 3
    assert Backtracking(BacktrackingConfig(**restart, noisy_end=0.5, clean_end=0.51), 10)._moves() == [(5, 6)] * 3
    assert Backtracking(BacktrackingConfig(**restart, noisy_end=0.99, clean_end=1.0), 10)._moves() == [(9, 10)] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0.0}, "actor.backtracking.depth must be above 0 and at most 1, got 0.0"),
        ({"depth": float("nan")}, "actor.backtracking.depth must be above 0 and at most 1, got nan"),
        ({"target_acceptance": 1.0}, "actor.backtracking.target_acceptance must be between 0 and 1, got 1.0"),
        ({"noisy_end": 0.7, "clean_end": 0.7}, "noisy_end must be at least 0 and below clean_end, .* got 0.7 and 0.7"),
        ({"rounds": 0}, "actor.backtracking.rounds must be at least 1, got 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        BacktrackingConfig(**options)
