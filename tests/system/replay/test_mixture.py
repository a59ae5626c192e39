"""Mixtures of priorities, ranks and random reshuffling."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from system.replay.config import ReplayConfig
from system.replay.shard import ReplayShard

NAMES = ["uniform", "residual", "likelihood", "importance", "rank", "reshuffled"]


def _config(**changes):
    free = {
        "samples_per_insert": None,
        "min_size": 1,
        "newest_share": 0.0,
        "insert_batch": 1000,
        "capacity_bytes": 10**6,
    }
    return ReplayConfig(**{**free, **changes})


def _rank_masses(log_likelihood, measurement_id):
    """From the definition, item by item."""
    masses = np.zeros(len(log_likelihood))
    for row, value in enumerate(log_likelihood):
        own = log_likelihood[(measurement_id == measurement_id[row]) & (log_likelihood > -np.inf)]
        if value > -np.inf:
            masses[row] = 1 / (0.01 * len(own) + 1 + np.count_nonzero(own > value))
    for each in np.unique(measurement_id):
        total = masses[measurement_id == each].sum()
        masses[measurement_id == each] /= total if total > 0 else 1.0
    return masses


@given(
    st.lists(
        st.tuples(st.sampled_from([-np.inf, -1e4, -1.0, 0.5, 2.0, 1e4]), st.integers(0, 3)), min_size=1, max_size=50
    )
)
def test_rank_masses_are_those_of_the_definition_with_ties_and_zero_likelihoods(build_trajectory, items):
    log_likelihood, measurement_id = (np.array(column) for column in zip(*items, strict=True))
    shard = ReplayShard(_config(priority="rank"), 0, seed=0)
    shard.insert(
        build_trajectory(range(len(items)), log_likelihood=log_likelihood, measurement_id=measurement_id.astype(int))
    )
    masses = shard._priorities["rank"].tree.leaves()[: len(items)]
    assert masses == pytest.approx(_rank_masses(log_likelihood, measurement_id), abs=1e-14)


def test_the_likeliest_percent_gets_15_percent_of_the_draws_by_rank_whatever_its_lead(make_trajectory):
    for lead in (0.0, 1e4):
        log_likelihood = np.random.default_rng(0).normal(size=10_000)
        best = np.argsort(log_likelihood)[-100:]
        log_likelihood[best] += lead
        shard = ReplayShard(_config(priority="rank"), 0, seed=0)
        shard.insert(make_trajectory(10_000, log_likelihood=log_likelihood))
        masses = shard._priorities["rank"].tree.leaves()[:10_000]
        assert masses[best].sum() / masses.sum() == pytest.approx(np.log(2) / np.log(101), abs=0.001)


def test_an_item_placed_between_renewals_has_the_rank_it_had_at_the_last(make_trajectory):
    shard = ReplayShard(_config(priority="rank"), 0, seed=0)
    shard.insert(make_trajectory(1000, log_likelihood=np.arange(1000.0)))
    shard.insert(make_trajectory(3, log_likelihood=[5000.0, 499.5, -np.inf]))
    masses = shard._priorities["rank"].tree.leaves()
    assert masses[1000] == masses[999]
    assert masses[1001] / masses[999] == pytest.approx(11 / (10 + 501))
    assert masses[1002] == 0.0
    shard.insert(make_trajectory(64, log_likelihood=np.arange(64.0) - 100))  # 67 of 1067: all are renewed
    own = shard._storage.column("log_likelihood").astype(np.float64)
    expected = _rank_masses(own, np.zeros(1067))
    assert shard._priorities["rank"].tree.leaves()[:1067] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("evict_by", ["age", "likelihood"])
def test_probabilities_and_frequencies_of_a_mixture_are_the_sum_over_its_normalised_parts(make_trajectory, evict_by):
    shares = {"residual": 0.5, "likelihood": 0.2, "rank": 0.3}
    config = _config(
        priority=shares, priority_exponent=0.5, newest_share=0.4, newest_window=40, max_items=400, insert_batch=40,
        evict_by=evict_by, min_size=40,
    )  # fmt: skip
    shard, generator = ReplayShard(config, 0, seed=0), np.random.default_rng(0)
    for _ in range(30):
        values, groups = generator.normal(size=40), generator.integers(3, size=40)
        shard.insert(make_trajectory(40, log_likelihood=values, measurement_id=groups))
        batch = shard.sample(256)
        shard.update_priorities(batch.ids, generator.gamma(0.5, size=256))
    storage = shard._storage
    expected = 0.4 * (storage.age(np.arange(400)) < 40) / 40
    for name, share in shares.items():
        masses = shard._priorities[name].tree.leaves()
        expected += 0.6 * share * masses / masses.sum()
    counts = np.zeros(400)
    for _ in range(1000):
        batch = shard.sample(256)
        np.testing.assert_allclose(batch.probability, expected[batch.ids.slot], rtol=1e-12)
        counts += np.bincount(batch.ids.slot, minlength=400)
    assert expected.sum() == pytest.approx(1.0)
    assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-3
    wrong = expected * np.where(np.arange(400) < 200, 1.1, 1.0)  # the same test sees half the items off by a tenth
    assert stats.chisquare(counts, wrong / wrong.sum() * counts.sum()).pvalue < 1e-3


def test_a_part_without_mass_is_drawn_uniformly_and_the_others_keep_their_share(make_trajectory):
    shard = ReplayShard(_config(priority={"likelihood": 0.25, "reshuffled": 0.75}), 0, seed=0)
    shard.insert(make_trajectory(10, log_likelihood=-np.inf))
    assert shard.sample(100).probability == pytest.approx(np.full(100, 0.1))
    shard.insert(make_trajectory(1, log_likelihood=3.0))
    assert set(shard.sample(100).ids.slot.tolist()) == {10}


def test_an_epoch_draws_each_of_100_items_once_and_the_next_in_another_order(make_trajectory):
    shard = ReplayShard(_config(priority="reshuffled"), 0, seed=0)
    shard.insert(make_trajectory(100))
    epochs = []
    for _ in range(3):
        batches = [shard.sample(20) for _ in range(5)]
        for number, batch in enumerate(batches):
            assert batch.probability == pytest.approx(np.full(20, 1 / (100 - 20 * number)))
        epochs.append(np.concatenate([batch.ids.slot for batch in batches]))
        assert sorted(epochs[-1].tolist()) == list(range(100))
    assert not np.array_equal(epochs[0], epochs[1])


def test_every_item_is_drawn_first_as_often_as_any_other(make_trajectory):
    counts = np.zeros(20)
    for seed in range(500):
        shard = ReplayShard(_config(priority="reshuffled"), 0, seed=seed)
        shard.insert(make_trajectory(20))
        shard.sample(3)
        counts += np.bincount(shard.sample(1).ids.slot, minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("before", "count"), [(0, 25), (7, 5), (7, 25), (9, 1), (3, 10)])
def test_the_marginal_of_a_draw_over_the_end_of_an_epoch_is_the_one_reported(make_trajectory, before, count):
    shard, hits = ReplayShard(_config(priority="reshuffled"), 0, seed=0), np.zeros(10)
    shard.insert(make_trajectory(10))
    if before:
        shard.sample(before)
    priority = shard._priorities["reshuffled"]
    expected, state = priority.probability(np.arange(10), count), priority.state_dict()
    for _ in range(3000):
        batch = shard.sample(count)
        np.testing.assert_allclose(batch.probability, expected[batch.ids.slot], rtol=1e-12)
        hits[batch.ids.slot[0]] += 1
        priority.load_state_dict(state, shard._storage.capacity)
    assert expected.sum() == pytest.approx(1.0)
    used = expected > 0
    assert not hits[~used].any()
    if used.sum() > 1:
        assert stats.chisquare(hits[used], expected[used] * 3000).pvalue > 1e-3


@given(
    steps=st.lists(st.tuples(st.sampled_from(["insert", "sample", "reload"]), st.integers(1, 12)), max_size=40),
    evict_by=st.sampled_from(["age", "likelihood"]),
)
def test_reshuffling_agrees_with_a_set_of_uids_while_items_come_and_go(build_trajectory, steps, evict_by):
    config = _config(priority="reshuffled", max_items=30, newest_window=12, insert_batch=12, evict_by=evict_by)
    shard, left, first = ReplayShard(config, 0, seed=0), set(), 0
    for what, count in steps:
        before = set(shard._storage.column("uid").tolist()) if len(shard) else set()
        if what == "insert":
            shard.insert(build_trajectory(range(first, first + count), log_likelihood=np.arange(count) % 3))
            first += count
            now = set(shard._storage.column("uid").tolist())
            left = (left & now) | (now - before)
        elif what == "reload":
            state = shard.state_dict()
            shard = ReplayShard(config, 0, seed=1)
            shard.load_state_dict(*state)
        elif before:
            drawn = shard.sample(count).trajectory.uid.tolist()
            if count <= len(left):
                assert set(drawn) <= left and len(set(drawn)) == count
                left -= set(drawn)
            else:  # all that were left, and of the next epochs at most one turn more for one item than for another
                times = {uid: drawn.count(uid) - (uid in left) for uid in before}
                assert set(left) <= set(drawn) and max(times.values()) - min(times.values()) <= 1
                most = max(times.values())
                left = {uid for uid in before if times[uid] < most} or set()
        if len(shard):
            own = shard._priorities["reshuffled"]._left.slots()
            assert set(shard._storage.column("uid")[own].tolist()) == left


@pytest.mark.parametrize("priority", ["rank", "reshuffled", {"residual": 0.3, "rank": 0.3, "reshuffled": 0.4}])
@pytest.mark.parametrize("evict_by", ["age", "likelihood"])
def test_a_restored_shard_goes_on_bit_for_bit_under_every_new_way_of_drawing(make_trajectory, priority, evict_by):
    config = _config(
        priority=priority, evict_by=evict_by, newest_share=0.2, newest_window=64, max_items=500, insert_batch=32,
        min_size=64,
    )  # fmt: skip
    shard, generator = ReplayShard(config, 0, seed=0), np.random.default_rng(0)

    def turn(target, trajectory, residuals):
        target.insert(trajectory)
        batch = target.sample(64)
        if batch is not None:
            target.update_priorities(batch.ids, residuals)
        return batch

    def batch():
        values, groups = generator.normal(size=20), generator.integers(4, size=20)
        return make_trajectory(20, log_likelihood=values, measurement_id=groups)

    for _ in range(60):
        turn(shard, batch(), generator.normal(size=64))
    arrays, scalars = shard.state_dict()
    restored = ReplayShard(config, 0, seed=5)
    restored.load_state_dict(arrays, json.loads(json.dumps(scalars)))
    for _ in range(30):
        trajectory, residuals = batch(), generator.normal(size=64)
        ours, theirs = (turn(target, trajectory, residuals) for target in (shard, restored))
        assert np.array_equal(ours.ids.slot, theirs.ids.slot)
        assert np.array_equal(ours.ids.generation, theirs.ids.generation)
        assert np.array_equal(ours.probability, theirs.probability)
        assert np.array_equal(ours.trajectory.uid, theirs.trajectory.uid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priority": {"rank": 0.5, "uniform": 0.4}}, r"must be positive and sum to 1, got {'rank': 0.5, 'unif"),
        ({"priority": {"rank": 1.5, "uniform": -0.5}}, "shares of priority must be positive"),
        ({"priority": {}}, "shares of priority must be positive and sum to 1, got {}"),
        ({"priority": {"rank": float("nan"), "uniform": 1.0}}, "shares of priority must be positive"),
        ({"priority": {"ranks": 1.0}}, "priority must be of uniform, .* got ranks"),
        ({"priority": "reshuffled", "group_size": 4}, "groups are drawn with it; set group_size to 1"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(**change)


def test_a_draw_too_small_for_a_share_has_probabilities_all_the_same(make_trajectory):
    """A tenth of four rows is often none: rows of the others have probabilities, not NaN."""
    shard = ReplayShard(_config(priority={"reshuffled": 0.1, "uniform": 0.9}), 0, seed=0)
    shard.insert(make_trajectory(20))
    probability = np.concatenate([shard.sample(4).probability for _ in range(50)])
    assert np.isfinite(probability).all() and (probability > 0).all()
