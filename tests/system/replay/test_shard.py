import json

import numpy as np
import pytest
from scipy import stats

from diffusion.trajectory import Trajectory
from system.replay.config import ReplayConfig
from system.replay.draws import MeasurementOrder, Mixture
from system.replay.messages import ItemIds
from system.replay.priority import UniformPriority
from system.replay.shard import ReplayShard
from system.replay.storage import TrajectoryStorage
from system.replay.sum_tree import SumTree

ITEM = 45  # bytes of one item of the fixture


def _config(**changes):
    free = {"samples_per_insert": None, "min_size": 1, "insert_batch": 1000}
    return ReplayConfig(**{**free, **changes})


def _tree(shard):
    (priority,) = shard._priorities.values()
    return priority.tree


def _slots_and_probabilities(shard, batch_size, draws):
    slots, probability = [], np.full(len(shard), np.nan)
    for _ in range(draws):
        batch = shard.sample(batch_size)
        slots.append(batch.ids.slot)
        probability[batch.ids.slot] = batch.probability
    return np.concatenate(slots), probability


@pytest.mark.parametrize("newest_share", [0.0, 0.3, 1.0])
def test_draw_frequencies_match_the_mixture_probability_returned(make_trajectory, newest_share):
    shard = ReplayShard(
        _config(priority="residual", newest_share=newest_share, newest_window=10, max_items=1000), index=0, seed=1
    )
    for _ in range(12):
        shard.insert(make_trajectory(100))
    generator = np.random.default_rng(0)
    while np.any(_tree(shard).leaves() == 1.0):
        ids = shard.sample(250).ids if newest_share < 1 else _all_ids(shard)
        shard.update_priorities(ids, generator.gamma(0.7, size=len(ids)) + 1e-3)
    slots, reported = _slots_and_probabilities(shard, 250, 2000)
    mass = _tree(shard).leaves()
    newest = np.arange(190, 200)  # 1200 inserts into 1000 slots: the cursor is at 200
    expected = (1 - newest_share) * mass / mass.sum()
    expected[newest] += newest_share / 10
    drawn = ~np.isnan(reported)
    assert reported[drawn] == pytest.approx(expected[drawn], rel=1e-12)
    assert expected[~drawn].sum() < 1e-3
    cells = np.arange(1000) % 20
    cells[newest] = 20 + np.arange(10)
    observed = np.bincount(cells[slots], minlength=30)
    wanted = np.bincount(cells, expected, minlength=30) * len(slots)
    used = wanted > 0
    assert not observed[~used].any()
    assert stats.chisquare(observed[used], wanted[used]).pvalue > 1e-3
    # The same test sees one cell being off by a tenth.
    wanted[np.flatnonzero(used)[0]] *= 1.1
    wanted *= observed.sum() / wanted.sum()
    assert stats.chisquare(observed[used], wanted[used]).pvalue < 1e-3


def test_every_row_of_a_draw_has_the_same_chance_of_being_from_the_newest(make_trajectory):
    shard = ReplayShard(_config(newest_share=0.25, newest_window=1), index=0, seed=0)
    shard.insert(make_trajectory(100))
    hits = np.mean([shard.sample(10).ids.slot == 99 for _ in range(4000)], axis=0)
    assert hits == pytest.approx(np.full(10, 0.25 + 0.75 / 100), abs=4 * np.sqrt(0.19 / 4000))


def test_late_residuals_are_ignored_and_counted_and_nan_ones_too(make_trajectory):
    shard = ReplayShard(_config(priority="residual", max_items=1000), index=3, seed=0)
    shard.insert(make_trajectory(1000))
    ids = _all_ids(shard)
    assert shard.update_priorities(ids, np.full(1000, 2.0)) == 1000
    shard.insert(make_trajectory(400))  # overwrites slots 0 to 399, each with the largest mass, 2
    residuals = np.full(1000, 7.0)
    residuals[[5, 500, 501]] = np.nan, np.nan, np.inf
    assert shard.update_priorities(ids, residuals) == 598
    mass = _tree(shard).leaves()
    assert mass[:400].tolist() == [2.0] * 400
    assert mass[500:502].tolist() == [2.0, 2.0]
    assert mass[502:].tolist() == [7.0] * 498
    counters = shard.stats()
    assert (counters.late_priorities, counters.nonfinite_priorities) == (400, 2)


def test_ids_of_another_shard_and_residuals_of_another_length_are_refused(make_trajectory):
    shard = ReplayShard(_config(), index=3, seed=0)
    shard.insert(make_trajectory(10))
    ids = shard.sample(4).ids
    assert ids.shard.tolist() == [3] * 4
    with pytest.raises(ValueError, match=r"ids must be of shard 3, got \[1\]"):
        shard.update_priorities(ItemIds(shard=np.full(4, 1), slot=ids.slot, generation=ids.generation), np.ones(4))
    with pytest.raises(ValueError, match=r"residuals must be \[4\] to match the ids, got \(3,\)"):
        shard.update_priorities(ids, np.ones(3))


def test_a_repeated_insert_stores_nothing_and_does_not_count_for_the_pace(make_trajectory):
    shard = ReplayShard(_config(), index=0, seed=0)
    trajectory = make_trajectory(8)
    assert shard.insert(trajectory).stored == 8
    reply = shard.insert(trajectory)
    assert (reply.accepted, reply.stored, reply.duplicates) == (True, 0, 8)
    counters = shard.stats()
    assert (counters.size, counters.inserts, counters.duplicates) == (8, 8, 8)


def test_inserts_and_samples_are_told_to_wait_and_counted(make_trajectory):
    shard = ReplayShard(
        ReplayConfig(samples_per_insert=2.0, min_size=8, tolerance=16.0, insert_batch=8, sample_batch=16), 0, seed=0
    )
    assert shard.sample(16) is None
    assert shard.insert(make_trajectory(8)).accepted
    assert shard.has_room(8)
    assert shard.insert(make_trajectory(8)).accepted  # error -16
    assert not shard.has_room(8)
    reply = shard.insert(make_trajectory(8))
    assert (reply.accepted, reply.stored, reply.retry_after) == (False, 0, 0.05)
    assert len(shard) == 16
    assert shard.sample(16) is not None
    assert shard.sample(16) is not None  # error +16
    assert shard.sample(16) is None
    counters = shard.stats()
    assert (counters.blocked_inserts, counters.blocked_samples) == (2, 2)
    assert (counters.samples_per_insert, counters.samples_per_insert_error) == (4.0, 1.0)


def test_with_both_sides_eager_the_shard_realises_four_samples_per_insert_within_one_per_cent(make_trajectory):
    shard = ReplayShard(ReplayConfig(capacity_bytes=1000 * ITEM), index=0, seed=0)
    for _ in range(2000):
        shard.insert(make_trajectory(64))
        shard.sample(256)
        shard.sample(256)
    assert shard.stats().samples_per_insert_error == pytest.approx(0.0, abs=0.01)
    assert shard.stats().evictions == shard.stats().inserts - 1000
    assert shard.stats().bytes == 1000 * ITEM


def test_groups_share_a_measurement_and_keep_the_marginal_probability(make_trajectory):
    shard = ReplayShard(
        _config(priority="likelihood", group_size=4, newest_share=0.4, newest_window=20, sample_batch=64), 0, seed=0
    )
    generator = np.random.default_rng(0)
    ids = generator.integers(5, size=200)
    shard.insert(make_trajectory(200, measurement_id=ids, log_likelihood=generator.normal(size=200)))
    batch = shard.sample(64)
    groups = batch.trajectory.measurement_id.reshape(16, 4)
    assert np.all(groups == groups[:, :1])
    assert len(np.unique(groups)) > 1
    slots, reported = _slots_and_probabilities(shard, 64, 4000)
    mass = _tree(shard).leaves()[:200]
    expected = 0.6 * mass / mass.sum() + 0.4 * (np.arange(200) >= 180) / 20
    assert reported == pytest.approx(expected, rel=1e-12)
    # Rows of a group are independent given its measurement, and measurements are stratified: no excess variance.
    assert stats.chisquare(np.bincount(slots, minlength=200), expected * len(slots)).pvalue > 1e-3


def test_items_without_mass_are_never_in_a_group(make_trajectory):
    shard = ReplayShard(_config(priority="importance", group_size=2, newest_share=0.0), 0, seed=0)
    log_likelihood = np.tile([0.0, -np.inf, -1.0], 20)
    log_likelihood[-6:] = -np.inf
    shard.insert(make_trajectory(60, measurement_id=np.repeat(np.arange(10), 6), log_likelihood=log_likelihood))
    for _ in range(200):
        batch = shard.sample(64)
        assert np.all(np.isfinite(batch.trajectory.log_likelihood))
        assert np.all(batch.trajectory.measurement_id < 9)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0), 1.0])
def test_the_extreme_targets_of_a_grouped_draw_miss_items_without_mass(make_trajectory, uniform):
    class Extreme:
        def random(self, size):
            return np.full(size, uniform)

        def permutation(self, values):
            return values

        def permuted(self, values, axis):
            return values

    mass = np.array([0.0, 0.1, 0.7, 0.0, 0.0, 0.3, 1e-9, 0.0, 0.0, 0.0])
    storage = TrajectoryStorage(10 * ITEM)
    storage.append(make_trajectory(10, measurement_id=np.repeat([0, 1, 2], [4, 4, 2])))
    priority = UniformPriority()
    priority.tree = SumTree(10)
    priority.tree.fill(mass)
    mixture = Mixture([priority], np.array([0.0, 1.0]), storage, 1)
    slots, _ = mixture.draw_groups(3, 2, MeasurementOrder(storage), Extreme())
    assert np.all(mass[slots] > 0)


def test_a_group_as_large_as_its_measurement_is_all_of_its_items(make_trajectory):
    shard = ReplayShard(_config(group_size=4, max_items=1000, newest_share=0.0), 0, seed=3)
    shard.insert(
        make_trajectory(
            40, uid=np.arange(40), measurement_id=-1 - np.arange(40) // 4, measurement=np.zeros((40, 1), np.float32)
        )
    )
    drawn = shard.sample(40).trajectory.uid.reshape(10, 4).astype(np.int64)
    assert (np.sort(drawn, 1) - drawn.min(1, keepdims=True) == np.arange(4)).all() and (drawn.min(1) % 4 == 0).all()
    assert (np.diff(drawn, axis=1) != 1).any()  # in no particular order


def test_one_measurement_makes_a_grouped_draw_a_plain_one(make_trajectory):
    plain, grouped = (ReplayShard(_config(group_size=size), index=0, seed=5) for size in (1, 8))
    for shard in (plain, grouped):
        shard.insert(make_trajectory(50, uid=np.arange(50)))
    assert np.array_equal(plain.sample(64).ids.slot, grouped.sample(64).ids.slot)
    with pytest.raises(ValueError, match="multiple of group_size = 8, got 12"):
        grouped.sample(12)


@pytest.mark.parametrize("priority", ["uniform", "residual", "likelihood", "importance"])
@pytest.mark.parametrize("group_size", [1, 4])
def test_a_restored_shard_goes_on_bit_for_bit(make_trajectory, tmp_path, priority, group_size):
    config = ReplayConfig(priority=priority, capacity_bytes=5000 * ITEM, group_size=group_size, newest_window=100)
    shard = ReplayShard(config, index=2, seed=7)
    generator = np.random.default_rng(0)

    def batch():
        ids = generator.integers(6, size=64)
        return make_trajectory(64, measurement_id=ids, log_likelihood=generator.normal(size=64) * 5)

    def turn(target, trajectory, residuals):
        reply = target.insert(trajectory)
        drawn = target.sample(256)
        if drawn is not None:
            target.update_priorities(drawn.ids, residuals)
        return reply, drawn

    for _ in range(120):
        turn(shard, batch(), generator.normal(size=256))
    arrays, scalars = shard.state_dict()
    np.savez(tmp_path / "shard.npz", **arrays)
    with np.load(tmp_path / "shard.npz", allow_pickle=False) as loaded:
        arrays = dict(loaded)
    restored = ReplayShard(config, index=2, seed=999)
    restored.load_state_dict(arrays, json.loads(json.dumps(scalars)))
    assert restored.stats() == shard.stats()
    assert shard.stats().evictions > 1000 and shard.stats().blocked_inserts + shard.stats().blocked_samples > 0
    for _ in range(40):
        trajectory, residuals = batch(), generator.normal(size=256)
        (reply, drawn), (reply_again, again) = (turn(target, trajectory, residuals) for target in (shard, restored))
        assert reply == reply_again
        assert (drawn is None) == (again is None)
        if drawn is not None and again is not None:
            assert np.array_equal(drawn.ids.slot, again.ids.slot)
            assert np.array_equal(drawn.ids.generation, again.ids.generation)
            assert np.array_equal(drawn.probability, again.probability)
            for name, value in drawn.trajectory.arrays().items():
                assert np.array_equal(value, again.trajectory.arrays()[name])
    assert restored.stats() == shard.stats()
    assert np.array_equal(_tree(restored).leaves(), _tree(shard).leaves())


def test_an_empty_shard_survives_a_round_trip(make_trajectory):
    shard, restored = (ReplayShard(_config(), index=0, seed=seed) for seed in (0, 1))
    restored.load_state_dict(*shard.state_dict())
    for target in (shard, restored):
        target.insert(make_trajectory(9, uid=np.arange(9)))
    assert np.array_equal(shard.sample(64).ids.slot, restored.sample(64).ids.slot)


def test_a_snapshot_is_a_copy(make_trajectory):
    shard = ReplayShard(_config(max_items=1000), index=0, seed=0)
    shard.insert(make_trajectory(1000))
    arrays, _ = shard.state_dict()
    shard.insert(make_trajectory(500))
    assert arrays["storage.uid"].tolist() == list(range(1000))


def test_half_the_budget_keeps_the_newer_half_with_its_masses_and_makes_old_ids_late(make_trajectory):
    shard = ReplayShard(_config(priority="residual", capacity_bytes=2000 * ITEM), index=0, seed=0)
    shard.insert(make_trajectory(1000))
    shard.insert(make_trajectory(1000))
    ids = _all_ids(shard)
    shard.update_priorities(ids, 1.0 + np.arange(2000))
    smaller = ReplayShard(_config(priority="residual", capacity_bytes=1000 * ITEM), index=0, seed=0)
    smaller.load_state_dict(*shard.state_dict())
    assert smaller.stats().size == smaller.stats().capacity == 1000
    assert smaller._storage.column("uid").tolist() == list(range(1000, 2000))
    assert _tree(smaller).leaves().tolist() == list(range(1001, 2001))
    assert smaller.update_priorities(ids, np.ones(2000)) == 0
    assert smaller.stats().late_priorities == 2000


def test_another_priority_after_a_restart_gives_masses_anew(make_trajectory):
    shard = ReplayShard(_config(priority="uniform"), index=0, seed=0)
    shard.insert(make_trajectory(2, log_likelihood=[0.0, np.log(3.0)]))
    other = ReplayShard(_config(priority="likelihood"), index=0, seed=0)
    other.load_state_dict(*shard.state_dict())
    assert _tree(other).leaves()[:2] == pytest.approx([0.25, 0.75])


def test_ids_from_between_a_snapshot_and_a_crash_are_late_once_retired(make_trajectory):
    shard = ReplayShard(_config(priority="residual", max_items=1000), index=0, seed=0)
    shard.insert(make_trajectory(500))
    snapshot = shard.state_dict()
    shard.insert(make_trajectory(100))
    lost = _all_ids(shard).take(slice(500, 600))
    restored = ReplayShard(_config(priority="residual", max_items=1000), index=0, seed=0)
    restored.load_state_dict(*snapshot)
    restored.retire_ids()
    restored.insert(make_trajectory(100))  # other items in the slots of the lost ones
    assert restored.update_priorities(lost, np.ones(100)) == 0
    assert restored.update_priorities(_all_ids(restored), np.ones(600)) == 600


def test_two_shards_of_one_seed_draw_differently_and_one_shard_twice_the_same(make_trajectory):
    drawn = []
    for index in (0, 0, 1):
        shard = ReplayShard(_config(), index=index, seed=11)
        shard.insert(make_trajectory(100, uid=np.arange(100)))
        drawn.append(shard.sample(64).ids.slot.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_empty_insert_is_accepted_before_and_after_the_first_item(make_trajectory):
    shard = ReplayShard(_config(), index=0, seed=0)
    assert shard.insert(make_trajectory(0)).accepted
    assert shard.insert(make_trajectory(1, log_likelihood=np.nan)).refused == 1
    assert shard.sample(1) is None
    shard.insert(make_trajectory(1))
    assert shard.insert(make_trajectory(0)).stored == 0


def test_a_budget_too_small_for_the_first_fill_is_refused_at_the_first_insert(make_trajectory):
    shard = ReplayShard(ReplayConfig(capacity_bytes=100 * ITEM), index=0, seed=0)
    with pytest.raises(ValueError, match="a budget of 4500 bytes holds 100 items of 45 bytes, but at least 256"):
        shard.insert(make_trajectory(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priority": "loss"}, "priority must be of uniform, residual, .*, rank, reshuffled, got loss"),
        ({"newest_share": 1.5}, r"newest_share must be in \[0, 1\], got 1.5"),
        ({"priority_exponent": 0.0}, r"priority_exponent must be in \(0, 10\], got 0.0"),
        (
            {"tolerance": 100.0, "insert_batch": 64, "sample_batch": 256},
            "tolerance must be at least 256.0 for inserts of 64, samples of 256",
        ),
        ({"samples_per_insert": -1.0}, "samples_per_insert must be positive or None, got -1.0"),
        ({"capacity_bytes": 0}, "capacity_bytes must be at least 1, got 0"),
        ({"max_items": 100}, "max_items must hold min_size = 256 and insert_batch = 64 items, got 100"),
        ({"truncation": 2.0}, r"truncation must be in \[0, 1\], got 2.0"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"retry_seconds": float("nan")}, "retry_seconds must be finite and not negative, got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_was_got(change, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(**change)


def test_a_trajectory_handed_in_is_not_changed_and_may_be_read_only(make_trajectory):
    shard = ReplayShard(_config(), index=0, seed=0)
    trajectory: Trajectory = make_trajectory(20)
    for value in trajectory.arrays().values():
        value.setflags(write=False)
    shard.insert(trajectory)
    assert shard.sample(10).trajectory.states.flags.writeable


def _all_ids(shard: ReplayShard) -> ItemIds:
    slots = np.arange(len(shard))
    return ItemIds(shard=np.full(len(slots), shard._index), slot=slots, generation=shard._storage.generation(slots))


def test_starts_come_by_age_likelihood_or_residual_and_the_limiter_does_not_count_them(make_trajectory):
    shard = ReplayShard(_config(newest_window=50, max_items=1000, samples_per_insert=1.0, tolerance=5000), 0, seed=3)
    assert shard.starts(10, "age") is None
    generator = np.random.default_rng(1)
    for _ in range(10):
        identity = np.repeat([0, 3, 3, 3, 3], 20)
        shard.insert(make_trajectory(100, log_likelihood=generator.normal(identity * 100), measurement_id=identity))
    order = shard._storage.slots_by_age()
    uids = shard._storage.column("uid")
    assert set(shard.starts(500, "age").uid.tolist()) == set(uids[order[-50:]].tolist())

    # With two measurements there are 15 rivals. K of them are of the same one, a binomial; the best of K + 1 has
    # the mean rank (K + 1) / (K + 2).
    # A fifth of the starts are uncontested, of mean rank one half.
    measurement, score = shard._storage.column("measurement_id"), shard._storage.column("log_likelihood")
    drawn = shard.starts(40_000, "likelihood")
    for value, share in ((0, 0.2), (3, 0.8)):
        own = np.sort(score[measurement == value])
        rank = np.searchsorted(own, drawn.log_likelihood[drawn.measurement_id == value]) / len(own)
        rivals = np.arange(16)
        expected = (stats.binom.pmf(rivals, 15, share) * (rivals + 1) / (rivals + 2)).sum()
        expected = 0.8 * expected + 0.2 * 0.5
        assert len(rank) == pytest.approx(40_000 * share, rel=0.05)
        assert rank.mean() == pytest.approx(expected, abs=0.01)

    residual = np.arange(1000.0)
    ids = _all_ids(shard)
    shard.update_priorities(ids, residual[ids.slot])
    by_residual = np.searchsorted(uids, shard.starts(40_000, "residual").uid)
    assert residual[by_residual].mean() > 700
    before = shard.stats()
    shard.starts(1000, "residual")
    assert shard.stats() == before

    again = ReplayShard(_config(newest_window=50, max_items=1000, samples_per_insert=1.0, tolerance=5000), 0, seed=4)
    again.load_state_dict(*shard.state_dict())
    np.testing.assert_array_equal(again.starts(64, "residual").uid, shard.starts(64, "residual").uid)


@pytest.mark.parametrize("by", ["age", "likelihood", "residual"])
def test_items_of_simulated_measurements_are_stored_and_drawn_but_start_by_age_alone(make_trajectory, by):
    shard = ReplayShard(_config(newest_window=30, max_items=1000, priority="importance", newest_share=0.0), 0, seed=3)
    own = np.arange(10, dtype=np.float32)[:, None]
    shard.insert(make_trajectory(10, measurement_id=-1 - np.arange(10), measurement=own))
    assert (shard.starts(5, by) is None) == (by != "age")
    shard.insert(make_trajectory(30, measurement_id=2, measurement=np.full((30, 1), 7, np.float32)))
    shard.insert(make_trajectory(10, measurement_id=-11 - np.arange(10), measurement=own))
    starts = shard.starts(400, by)
    assert len(set(starts.uid.tolist())) == 30
    if by == "age":
        assert set(starts.measurement_id.tolist()) == {2, *range(-20, -10)}
    else:
        assert set(starts.measurement_id.tolist()) == {2} and (starts.measurement == 7).all()
    # Normalised like one more measurement: half of the draws.
    drawn = shard.sample(4000).trajectory
    assert np.mean(drawn.measurement_id < 0) == pytest.approx(0.5, abs=0.03)
    assert set(drawn.measurement[drawn.measurement_id < 0, 0].tolist()) == set(range(10))


def test_an_item_whose_residual_is_not_known_yet_starts_before_all_that_are_known(make_trajectory):
    shard = ReplayShard(_config(max_items=1000), 0, seed=3)
    shard.insert(make_trajectory(8, measurement_id=np.zeros(8, np.int64)))
    ids = _all_ids(shard).take(np.arange(7))
    shard.update_priorities(ids, np.full(7, 1e6))
    newest = shard._storage.column("uid")[7]
    # Absent from a tournament of eight among eight with probability (7/8)^8 = 0.34; a fifth are uncontested.
    expected = 0.8 * (1 - (7 / 8) ** 8) + 0.2 / 8
    assert np.mean(shard.starts(4000, "residual").uid == newest) == pytest.approx(expected, abs=0.03)


def test_a_draw_without_the_newest_share_has_the_prioritised_probability_of_every_item(make_trajectory):
    shard = ReplayShard(_config(priority="importance", newest_share=0.5, newest_window=10, truncation=1.0), 0, seed=2)
    shard.insert(make_trajectory(40, log_likelihood=np.log(np.arange(40.0) + 1)))
    batch = shard.sample(256, newest=False)
    assert batch.probability == pytest.approx((batch.ids.slot + 1) / 820, rel=1e-6)
    mixed = shard.sample(256)
    expected = 0.5 * (mixed.ids.slot + 1) / 820 + 0.05 * (mixed.ids.slot >= 30)
    assert mixed.probability == pytest.approx(expected, rel=1e-6)


def test_among_100_measurements_starts_are_still_of_the_best_tenth_of_their_own(make_trajectory):
    shard, generator = ReplayShard(_config(max_items=5000), 0, seed=0), np.random.default_rng(0)
    for _ in range(10):  # twice as many as fit
        groups = np.arange(1000) % 100
        shard.insert(make_trajectory(1000, measurement_id=groups, log_likelihood=generator.normal(size=1000) + groups))
    assert shard._storage.num_measurements == 100
    scores, groups = (shard._storage.column(name) for name in ("log_likelihood", "measurement_id"))
    drawn = shard.starts(2000, "likelihood")
    assert np.bincount(drawn.measurement_id).min() > 5
    ranks = [
        np.mean(scores[groups == group] <= score)
        for group, score in zip(drawn.measurement_id, drawn.log_likelihood, strict=True)
    ]
    # 8 rivals on average of 50 items: the mean of the rank of the largest of 1 + Poisson(8) is about 0.89; a fifth are
    # uncontested.
    assert np.mean(ranks) == pytest.approx(0.8 * 0.89 + 0.2 * 0.5, abs=0.02)
