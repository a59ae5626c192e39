"""What counts as diverged."""

import json
import math

import pytest

from system.config_file import config_from_tree
from system.judge import has_diverged
from system.run import train

SOUND = {"eval/elbo": -3.0, "eval/prior_elbo": -40.0, "eval/w2": 1.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"eval/elbo": -40.0}, False),
        ({"eval/elbo": -40.001}, True),
        ({"eval/elbo": math.nan}, True),
        ({"eval/w2": math.inf}, True),
        ({"eval/elbo": -math.inf}, True),
        ({"eval/prior_elbo": -math.inf}, False),  # prior samples without any likelihood are no fault of training
        ({"eval/prior_elbo": -math.inf, "eval/elbo": -math.inf, "eval/gap": math.inf}, False),  # a rare event
        ({"eval/prior_elbo": -math.inf, "eval/elbo": -math.inf, "eval/iw_log_partition": -math.inf}, True),
        ({"eval/prior_elbo": math.nan}, False),
    ],
)
def test_a_run_has_diverged_if_a_number_is_not_finite_or_it_ends_worse_than_the_prior(changes, expected):
    assert has_diverged(SOUND | changes) is expected


@pytest.mark.parametrize(("seconds", "diverged"), [(1e-3, False), (60.0, True)])
def test_only_a_run_that_has_learned_can_have_diverged(tmp_path, monkeypatch, seconds, diverged):
    """Without an update q is what it began with, and its ELBO may be below the prior's by chance."""
    monkeypatch.setattr("system.judge.has_diverged", lambda metrics: True)
    tree = {
        "problem": {"name": "gaussian-linear", "dim": 2, "measurement_dim": 1, "num_steps": 5},
        "posterior": {"hidden": 8},
        "actor": {"batch_size": 16},
        "learner": {"batch_size": 8},
        "replay": {"min_size": 16},
        "evaluation": {"trajectories": 64, "final_trajectories": 64},
        "updates": 2,
        "max_seconds": seconds,
    }
    results = json.loads(train(config_from_tree(tree, "test"), tmp_path / "run", quiet=True).results.read_text())
    assert results["diverged"] is diverged
    assert any(note.startswith("DIVERGED") for note in results["notes"]) is diverged
    assert any("before its first update" in note for note in results["notes"]) is not diverged
