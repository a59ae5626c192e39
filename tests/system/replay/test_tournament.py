"""Tournaments: their probability by enumeration, and weights that stay right under the choice."""

import itertools

import numpy as np
import pytest

from system.replay.config import ReplayConfig
from system.replay.shard import ReplayShard
from system.replay.tournament import UNCONTESTED, log_choice_ratio, tournament


class Enumerated:
    """A generator that deals every possible draw of `entrants` out of `size` once."""

    def __init__(self, size, entrants):
        self.draws = np.array(list(itertools.product(range(size), repeat=entrants)))

        self.contested = True

    def integers(self, high, size):
        return self.draws

    def random(self, count):
        return np.full(count, float(self.contested))


@pytest.mark.parametrize(
    ("score", "measurement_id"),
    [
        ([3.0, 1.0, 2.0, 5.0, 4.0], [0, 0, 0, 0, 0]),
        ([3.0, 1.0, 2.0, 5.0, 4.0], [0, 1, 0, 1, 0]),
        ([2.0, 1.0, 2.0, 2.0, -np.inf], [0, 0, 0, 1, 0]),
        ([-np.inf, -np.inf, np.inf, np.inf, 0.0], [7, 7, 7, 7, 3]),
    ],
)
def test_the_probability_of_a_choice_is_that_of_all_tournaments_enumerated(score, measurement_id):
    score, measurement_id, entrants = np.array(score), np.array(measurement_id), 4
    dealer, share = Enumerated(5, entrants), np.zeros(5)
    for dealer.contested, weight in ((True, 1 - UNCONTESTED), (False, UNCONTESTED)):
        winners = tournament(score, measurement_id, 5**entrants, entrants, dealer)
        share += weight * np.bincount(winners, minlength=5) / 5**entrants
    rows = np.arange(5)
    assert np.exp(log_choice_ratio(score, measurement_id, rows, entrants)) == pytest.approx(5 * share, rel=1e-12)
    assert share.sum() == pytest.approx(1, rel=1e-12) and share.min() >= UNCONTESTED / 5 - 1e-12


def test_a_choice_among_equals_is_none():
    rows = np.arange(6)
    assert log_choice_ratio(np.zeros(6), np.zeros(6, np.int64), rows, 8) == pytest.approx(np.zeros(6), abs=1e-12)


@pytest.mark.parametrize("by", ["likelihood", "residual", "age"])
def test_starts_stand_for_what_is_stored_whatever_they_are_chosen_by(make_trajectory, by):
    """The mean weight of the starts, and of a function of them, is that of the items; likely ones are chosen more."""
    generator = np.random.default_rng(0)
    values, count = generator.normal(size=(2, 300)), 60_000
    config = ReplayConfig(samples_per_insert=None, min_size=1, insert_batch=300, max_items=300, newest_window=300)
    shard = ReplayShard(config, 0, seed=3)
    log_likelihood = 0.5 * values[0]
    shard.insert(make_trajectory(300, log_likelihood=log_likelihood, samples=values[1], log_behaviour_ratio=0.3))
    batch = shard.sample(1500)
    shard.update_priorities(batch.ids, batch.trajectory.log_likelihood)
    starts = shard.starts(count, by)
    weight = np.exp(starts.log_importance)
    for function, expected in (
        (np.ones(count), np.exp(log_likelihood - 0.3).mean()),
        (starts.samples[:, 0] > 0, (np.exp(log_likelihood - 0.3) * (values[1] > 0)).mean()),
        (starts.log_likelihood > 0, (np.exp(log_likelihood - 0.3) * (values[0] > 0)).mean()),
    ):
        drawn = weight * function
        assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / count**0.5)
    assert (starts.log_likelihood > 0).mean() > (0.85 if by == "likelihood" else 0.4)
