import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.end_points import EndPoints
from system.replay.config import ReplayConfig
from system.replay.shard import ReplayShard
from system.replay.storage import TrajectoryStorage

ITEM = 45  # bytes of one item of the fixture


def test_capacity_is_the_budget_over_the_bytes_of_one_item(make_trajectory):
    storage = TrajectoryStorage(10 * ITEM + ITEM - 1)
    storage.append(make_trajectory(4))
    assert (storage.capacity, storage.item_bytes, len(storage)) == (10, ITEM, 4)
    small = TrajectoryStorage(10 * ITEM, max_items=7)
    small.append(make_trajectory(4))
    assert small.capacity == 7


def test_the_oldest_of_seven_items_in_five_slots_are_overwritten_first(make_trajectory):
    storage = TrajectoryStorage(5 * ITEM)
    assert storage.append(make_trajectory(4)).tolist() == [0, 1, 2, 3]
    assert storage.append(make_trajectory(3)).tolist() == [4, 0, 1]
    assert storage.column("uid")[storage.slots_by_age()].tolist() == [2, 3, 4, 5, 6]
    assert storage.age(np.array([2, 1])).tolist() == [4, 0]
    assert storage.generation(np.arange(5)).tolist() == [2, 2, 1, 1, 1]
    assert storage.evictions == 2
    assert storage.is_current(np.array([0, 0, 2, 9]), np.array([1, 2, 1, 1])).tolist() == [False, True, True, False]


@given(
    capacity=st.integers(4, 9),
    batches=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), max_size=30),
)
def test_ring_and_deduplication_agree_with_a_plain_list(build_trajectory, capacity, batches):
    storage, model = TrajectoryStorage(capacity * ITEM), []
    duplicates = 0
    for uids in batches:
        before, seen = list(model), []
        for uid in uids:
            if uid in before or uid in seen:
                duplicates += 1
            else:
                seen.append(uid)
        storage.append(build_trajectory(uids))
        model = (model + seen)[-capacity:]
        assert storage.column("uid")[storage.slots_by_age()].tolist() == model
    assert storage.duplicates == duplicates
    assert storage._uids == set(model)


def test_a_retried_insert_of_three_is_stored_once_and_a_forgotten_uid_again(make_trajectory):
    storage = TrajectoryStorage(4 * ITEM)
    storage.append(make_trajectory(3, uid=[1, 2, 2]))
    assert storage.append(make_trajectory(3, uid=[1, 2, 2])).tolist() == []
    assert (len(storage), storage.duplicates) == (2, 4)
    storage.append(make_trajectory(4, uid=[10, 11, 12, 13]))
    assert len(storage.append(make_trajectory(1, uid=[1]))) == 1


def test_a_budget_that_does_not_hold_one_insert_is_refused_with_both_sizes(make_trajectory):
    with pytest.raises(ValueError, match=r"a budget of 200 bytes holds 4 items of 45 bytes, not one insert of 5"):
        TrajectoryStorage(200).append(make_trajectory(5))
    with pytest.raises(ValueError, match=r"holds 4 items of 45 bytes, but at least 8 are needed"):
        TrajectoryStorage(200, min_items=8).append(make_trajectory(1))


def test_trajectories_of_another_shape_are_refused_with_expected_and_got(make_trajectory):
    storage = TrajectoryStorage(10_000)
    storage.append(make_trajectory(2, steps=3))
    with pytest.raises(ValueError, match=r"states of one item: expected \(\(4, 1\), 'float32'\), got \(\(6, 1\)"):
        storage.append(make_trajectory(2, steps=5))
    with pytest.raises(ValueError, match=r"expected trajectories with .* got .*denoised"):
        storage.append(make_trajectory(2, steps=3, denoised=True))
    assert len(storage) == 2


def test_take_gives_back_what_was_stored_and_does_not_share_memory(make_trajectory):
    storage = TrajectoryStorage(10_000)
    stored = make_trajectory(5, samples=np.arange(5.0), log_likelihood=-np.arange(5.0), denoised=True)
    storage.append(stored)
    taken = storage.take(np.array([4, 0, 4]))
    for name, value in stored.arrays().items():
        assert np.array_equal(taken.arrays()[name], value[[4, 0, 4]])
    taken.states[:] = 99.0
    assert storage.take(np.array([4])).samples.item() == 4.0


def test_a_smaller_budget_keeps_the_newest_four_of_seven_and_makes_all_old_ids_stale(make_trajectory):
    storage = TrajectoryStorage(7 * ITEM)
    storage.append(make_trajectory(6))
    storage.append(make_trajectory(5))
    arrays, scalars = storage.state_dict()
    smaller = TrajectoryStorage(4 * ITEM)
    slots, saved = smaller.load_state_dict(arrays, scalars)
    assert (slots.tolist(), saved.tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert smaller.column("uid")[smaller.slots_by_age()].tolist() == [7, 8, 9, 10]
    assert smaller.evictions == 4 + 3
    for generation in (1, 2):
        assert not smaller.is_current(np.arange(4), np.full(4, generation)).any()
    smaller.append(make_trajectory(1))
    assert smaller.column("uid")[smaller.slots_by_age()].tolist() == [8, 9, 10, 11]


@given(first=st.integers(1, 6), second=st.integers(0, 6), budget=st.integers(1, 20))
def test_any_other_budget_keeps_the_newest_in_order(build_trajectory, first, second, budget):
    storage = TrajectoryStorage(6 * ITEM)
    storage.append(build_trajectory(range(first)))
    storage.append(build_trajectory(range(first, first + second)))
    uids = storage.column("uid")[storage.slots_by_age()].tolist()
    arrays, scalars = storage.state_dict()
    other = TrajectoryStorage(budget * ITEM)
    other.load_state_dict(arrays, scalars)
    assert other.column("uid")[other.slots_by_age()].tolist() == uids[-budget:]
    other.append(build_trajectory([100]))
    assert other.column("uid")[other.slots_by_age()].tolist() == ([*uids, 100])[-budget:]


def test_retired_ids_are_stale_for_stored_and_for_coming_items(make_trajectory):
    storage = TrajectoryStorage(4 * ITEM)
    storage.append(make_trajectory(2))
    storage.retire_ids()
    storage.append(make_trajectory(2))
    assert not storage.is_current(np.arange(4), np.ones(4, dtype=np.int64)).any()
    assert storage.is_current(np.arange(4), storage.generation(np.arange(4))).all()


def test_end_points_of_50_steps_in_16_dimensions_take_less_than_a_thirtieth_of_the_bytes(build_trajectory):
    generator = np.random.default_rng(0)
    paths = build_trajectory(range(20), steps=50, log_likelihood=np.arange(20.0), log_behaviour_ratio=1.5)
    paths = dataclasses.replace(paths, states=generator.normal(size=(20, 51, 16)).astype(np.float32))
    shards = [
        ReplayShard(ReplayConfig(store=store, samples_per_insert=None, min_size=1), 0, seed=0)
        for store in ("paths", "endpoints")
    ]
    for shard in shards:
        shard.insert(paths)
    whole, ends = (shard.stats().bytes / 20 for shard in shards)
    assert (whole, ends) == (51 * 16 * 4 + 50 * 4 + 33, 16 * 4 + 33)
    drawn = shards[1].sample(10)
    assert np.array_equal(drawn.trajectory.samples, paths.samples[drawn.ids.slot])
    assert drawn.trajectory.log_behaviour_ratio.tolist() == [1.5] * 10
    assert np.array_equal(shards[0].sample(10).ids.slot, drawn.ids.slot)  # what is drawn does not depend on it
    assert isinstance(shards[1].starts(4, "likelihood"), EndPoints)
    assert shards[1].insert(EndPoints.of(paths)).duplicates == 20
    with pytest.raises(ValueError, match=r"replay.store asks for .*states.* but the checkpoint holds .*samples"):
        ReplayShard(ReplayConfig(samples_per_insert=None, min_size=1), 0, seed=0).load_state_dict(
            *shards[1].state_dict()
        )
