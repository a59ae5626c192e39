"""Several shards drawn as one: exact probabilities, fresh or stale; round robin of alike shards; the pace of all."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from system.replay.config import ReplayConfig
from system.replay.messages import LogTotals, ShardMass, Weighting
from system.replay.shard import ReplayShard
from system.replay.shard_choice import ShardChoice

HALVES = np.array([0.5, 0.5])


def _config(**changes):
    free = {"samples_per_insert": None, "min_size": 1, "insert_batch": 1000, "capacity_bytes": 10**6}
    return ReplayConfig(**{**free, **changes})


def _tell(shards, choice):
    together = choice.update([shard.mass() for shard in shards])
    for shard in shards:
        shard.refer(together)


def _skewed(make_trajectory, config):
    """Two shards; the second has a quarter of the items, and its likelihoods are 2 nats higher."""
    shards, generator = [ReplayShard(config, index, seed=0) for index in range(2)], np.random.default_rng(0)
    for shard, count in zip(shards, (400, 100), strict=True):
        for _ in range(2):  # the first half renews the masses, once the totals are known
            values = generator.normal(size=count // 2) + 2.0 * (count == 100)
            groups = generator.integers(3, size=count // 2)
            trajectory = make_trajectory(count // 2, log_likelihood=values + 100 * groups, measurement_id=groups)
            shard.insert(trajectory)
    return shards


def _renew(make_trajectory, shards):
    for shard in shards:  # an eighth of new items without mass
        shard.insert(make_trajectory(len(shard) // 8, log_likelihood=-np.inf))


def _reported(shards, choice, draws, shares):
    """(frequency, reported probability) of every item of all shards, by turns."""
    offsets = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])])
    counts, reported = np.zeros(offsets[-1]), np.full(offsets[-1], np.nan)
    for _ in range(draws):
        turn = choice.next(shares)
        batch = shards[turn.shard].sample(200, turn.weighting)
        places = offsets[turn.shard] + batch.ids.slot
        counts += np.bincount(places, minlength=offsets[-1])
        reported[places] = batch.probability
    return counts, reported


@pytest.mark.parametrize("priority", ["importance", "likelihood"])
def test_two_unlike_shards_are_drawn_as_one_of_all_their_items_in_three_measurements(make_trajectory, priority):
    config = _config(priority=priority, truncation=1.0, newest_share=0.25, newest_window=40)
    shards = _skewed(make_trajectory, config)
    choice = ShardChoice(2)
    _tell(shards, choice)
    _renew(make_trajectory, shards)
    _tell(shards, choice)
    log_weight, groups = (
        np.concatenate([shard._storage.column(name) for shard in shards])
        for name in ("log_likelihood", "measurement_id")
    )
    expected = np.zeros(len(log_weight))
    for group in range(3):
        own = groups == group
        expected[own] = np.exp(log_weight[own] - logsumexp(log_weight[own].astype(np.float64))) / 3
    newest = np.concatenate([shard._storage.age(np.arange(len(shard))) < 40 for shard in shards])
    expected = 0.75 * expected + 0.25 * newest / 80
    counts, reported = _reported(shards, choice, 2000, config.shares())
    drawn = counts > 0
    np.testing.assert_allclose(reported[drawn], expected[drawn], rtol=1e-6)
    assert expected[~drawn].sum() < 1e-4
    assert stats.chisquare(counts[drawn], expected[drawn] / expected[drawn].sum() * counts.sum()).pvalue > 1e-3
    # Round robin of the two would draw the second's items twice as often, in sum.
    second = np.arange(len(expected)) >= len(shards[0])
    assert expected[second].sum() != pytest.approx(0.5, abs=0.04)


def test_what_is_reported_is_exact_even_where_the_choice_was_made_by_old_masses(make_trajectory):
    config = _config(priority={"residual": 0.6, "likelihood": 0.4}, newest_share=0.2, newest_window=40)
    shards = _skewed(make_trajectory, config)
    choice = ShardChoice(2)
    _tell(shards, choice)
    generator = np.random.default_rng(1)
    for shard, scale in zip(shards, (0.1, 10.0), strict=True):
        batch = shard.sample(200)
        shard.update_priorities(batch.ids, scale * generator.gamma(0.5, size=200))
    _renew(make_trajectory, shards[:1])
    counts, reported = _reported(shards, choice, 3000, config.shares())
    drawn = counts > 0
    assert np.nansum(reported) == pytest.approx(1.0, abs=2e-3)
    assert stats.chisquare(counts[drawn], reported[drawn] / reported[drawn].sum() * counts.sum()).pvalue > 1e-3


def test_residual_masses_of_both_shards_are_relative_to_their_sum(make_trajectory):
    config = _config(priority="residual", newest_share=0.0)
    shards = [ReplayShard(config, index, seed=0) for index in range(2)]
    for shard, residual in zip(shards, (1.0, 3.0), strict=True):
        shard.insert(make_trajectory(10))
        batch = shard.sample(200)
        shard.update_priorities(batch.ids, np.full(200, residual))
    choice = ShardChoice(2)
    _tell(shards, choice)
    turns = [choice.next(config.shares()) for _ in range(400)]
    assert [sum(turn.shard == shard for turn in turns) for shard in range(2)] == [100, 300]
    for index, expected in ((0, 1 / 40), (1, 3 / 40)):
        turn = next(turn for turn in turns if turn.shard == index)
        assert shards[index].sample(5, turn.weighting).probability == pytest.approx(np.full(5, expected))


def test_alike_shards_take_turns_and_each_counts_its_own(make_trajectory):
    choice = ShardChoice(3)
    mass = ShardMass(size=10, newest=5, totals=np.array([10.0]), log_totals=(LogTotals.nothing(),))
    choice.update([mass] * 3)
    turns = [choice.next(HALVES) for _ in range(30)]
    assert [turn.shard for turn in turns] == [0, 1, 2] * 10
    assert [turn.pace for turn in turns] == [0, 1, 2] * 10
    assert [turn.weighting.choice for turn in turns] == pytest.approx([1 / 3] * 30)


def test_with_one_of_two_shards_empty_all_draws_come_from_the_other():
    choice = ShardChoice(2)
    masses = [ShardMass(size=n, newest=n, totals=np.array([0.0]), log_totals=(LogTotals.nothing(),)) for n in (0, 10)]
    choice.update(masses)
    assert not choice.complete
    turns = [choice.next(HALVES) for _ in range(20)]
    assert {turn.shard for turn in turns} == {1}
    assert turns[0].weighting.shares == pytest.approx([0.5, 0.5])
    assert abs(sum(turn.pace for turn in turns) - 10) <= 1


@pytest.mark.parametrize("heavier", [1.0, 9.0, 1e6])
def test_both_shards_keep_their_pace_and_nobody_waits_for_ever_however_unlike_their_masses(make_trajectory, heavier):
    """Actors insert into one shard after the other and wait where there is no room, as `RolloutWorker` does."""
    config = ReplayConfig(min_size=100, insert_batch=20, sample_batch=50, priority="residual", capacity_bytes=10**6)
    shards, choice = [ReplayShard(config, index, seed=0) for index in range(2)], ShardChoice(2)
    actor, drawn, waits = 0, np.zeros(2), 0
    for _ in range(1500):
        if shards[actor % 2].insert(make_trajectory(20)).accepted:
            actor += 1
        if not choice.complete:
            _tell(shards, choice)
        turn = choice.next(config.shares())
        batch = None
        if turn.pace == turn.shard:
            batch = shards[turn.shard].sample(50, turn.weighting)
        elif shards[turn.pace].take_turn(50):
            batch = shards[turn.shard].sample(50, turn.weighting, counted=False)
        if batch is None:
            choice.refused(turn)
            waits += 1
            assert waits < 50
            continue
        waits = 0
        choice.accepted()
        drawn[turn.shard] += 1
        shards[turn.shard].update_priorities(batch.ids, np.full(50, heavier if turn.shard else 1.0))
        if drawn.sum() % 20 == 0:
            _tell(shards, choice)
    assert drawn.sum() > 1000
    for shard in shards:
        assert shard.stats().samples_per_insert_error == pytest.approx(0.0, abs=0.04)
        assert shard.stats().samples == pytest.approx(drawn.sum() * 25, rel=0.01)
    share = drawn[1] / drawn.sum()
    assert share == pytest.approx(0.5 + 0.5 * (heavier - 1) / (heavier + 1) * 0.5, abs=0.03)


def test_the_share_of_a_weighting_is_that_within_the_shard(make_trajectory):
    shard = ReplayShard(_config(newest_window=1, newest_share=0.5), 0, seed=0)
    shard.insert(make_trajectory(10))
    batch = shard.sample(100, Weighting(choice=0.25, shares=np.array([0.0, 1.0])))
    assert batch.probability == pytest.approx(np.full(100, 0.025))


def test_totals_of_shards_that_know_different_measurements_add_up():
    parts = [
        LogTotals(measurement=np.array([1, 4]), log_total=np.log([2.0, 3.0])),
        LogTotals(measurement=np.array([0, 4]), log_total=np.array([-np.inf, np.log(5.0)])),
        LogTotals.nothing(),
    ]
    together = LogTotals.together(parts)
    assert together.measurement.tolist() == [0, 1, 4]
    assert np.exp(together.log_total) == pytest.approx([0.0, 2.0, 8.0])
    share = together.log_share(np.array([0, 1, 2, 4]), np.log([1.0, 2.0, 7.0, 4.0]))
    assert np.exp(share) == pytest.approx([1.0, 1.0, 1.0, 0.5])


def test_a_refused_turn_is_asked_again_of_the_same_shard_with_another_ones_pace():
    choice = ShardChoice(3)
    masses = [ShardMass(size=n, newest=n, totals=np.array([1.0 * n]), log_totals=()) for n in (10, 20, 50)]
    choice.update(masses)
    for _ in range(7):
        choice.next(HALVES)
    turns = []
    for _ in range(3):
        turns.append(choice.next(HALVES))
        choice.refused(turns[-1])
    assert len({turn.shard for turn in turns}) == 1 and {turn.pace for turn in turns} == {0, 1, 2}
    choice.accepted()
    later = [choice.next(HALVES).shard for _ in range(800 - 7)]
    other = ShardChoice(3)
    other.update(masses)
    assert later == [other.next(HALVES).shard for _ in range(800)][7:]  # as if nothing had been refused
    assert np.bincount(later).tolist() == pytest.approx([100, 200, 500], abs=5)


def test_an_item_placed_between_renewals_has_the_mass_of_its_equals_in_the_other_shard(make_trajectory):
    config = _config(priority="likelihood")
    shards = [ReplayShard(config, index, seed=0) for index in range(2)]
    choice = ShardChoice(2)
    for shard, count in zip(shards, (300, 100), strict=True):
        shard.insert(make_trajectory(count))
    _tell(shards, choice)
    _renew(make_trajectory, shards)
    shards[0].insert(make_trajectory(1, log_likelihood=np.log(2.0)))
    ours, theirs = (shard._priorities["likelihood"].tree.leaves() for shard in shards)
    assert ours[0] == pytest.approx(theirs[0]) == pytest.approx(1 / 400)
    assert ours[len(shards[0]) - 1] == pytest.approx(2 / 400)
