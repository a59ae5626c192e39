"""What counts as diverged."""

import math

import pytest

from system.judge import has_diverged

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
