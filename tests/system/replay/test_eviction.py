"""Eviction by likelihood against a plain list, and the ages and windows that must stay right under it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from system.replay.config import ReplayConfig
from system.replay.eviction import worth_sending
from system.replay.shard import ReplayShard
from system.replay.storage import TrajectoryStorage

ITEM = 45  # bytes of one item of the fixture


class PlainList:
    """(number, log-likelihood, measurement) of every item, and the rule in ten lines."""

    def __init__(self, capacity, window):
        self.capacity, self.window, self.items, self.count, self.last = capacity, window, [], 0, -1

    def append(self, values, measurements):
        total = self.count + len(values)
        self.items += zip(range(self.count, total), values, measurements, strict=True)
        self.count = total
        for _ in range(max(len(self.items) - self.capacity, 0)):
            outside = [item for item in self.items if item[0] < total - self.window]
            groups = [item[2] for item in outside]
            most = sorted({group for group in groups if groups.count(group) == max(map(groups.count, groups))})
            self.last = next((group for group in most if group > self.last), most[0])
            gone = min((item for item in outside if item[2] == self.last), key=lambda item: (item[1], item[0]))
            self.items.remove(gone)

    def floors(self):
        outside = [item for item in self.items if item[0] < self.count - self.window]
        groups = [item[2] for item in outside]
        most = {group for group in groups if groups.count(group) == max(map(groups.count, groups))}
        full = len(self.items) == self.capacity
        return {group: min(item[1] for item in outside if item[2] == group) for group in most} if full else {}


def _uids(storage):
    return storage.column("uid")[storage.slots_by_age()].tolist()


@given(
    window=st.integers(1, 5),
    beyond=st.integers(1, 8),
    items=st.lists(st.tuples(st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 3.0]), st.integers(0, 3)), max_size=60),
    data=st.data(),
)
def test_eviction_by_likelihood_agrees_with_a_plain_list_and_survives_a_round_trip(
    build_trajectory, window, beyond, items, data
):
    capacity, done = window + beyond, 0
    storage = TrajectoryStorage(capacity * ITEM, evict_by="likelihood", window=window)
    model = PlainList(capacity, window)
    while done < len(items):
        size = data.draw(st.integers(1, window))
        values, measurements = zip(*items[done : done + size], strict=True)
        uids = range(done, done + len(values))
        slots = storage.append(build_trajectory(uids, log_likelihood=values, measurement_id=measurements))
        done += len(values)
        model.append(values, measurements)
        assert _uids(storage) == [item[0] for item in model.items]
        assert storage.column("uid")[slots].tolist() == list(uids)
        assert storage.floors() == model.floors()
        newest = np.arange(min(window, len(storage)))
        assert storage.column("uid")[storage.slots_of_age(newest)].tolist() == [done - 1 - age for age in newest]
        assert (storage.age(np.arange(len(storage))) == done - 1 - storage.column("uid").astype(int)).all()
        assert storage.evictions == done - len(model.items)
        if data.draw(st.booleans()):
            state = storage.state_dict()
            storage = TrajectoryStorage(capacity * ITEM, evict_by="likelihood", window=window)
            storage.load_state_dict(*state)


def test_the_likeliest_of_each_measurement_stay_and_an_overwritten_slot_has_a_new_generation(make_trajectory):
    storage = TrajectoryStorage(1000 * ITEM, evict_by="likelihood", window=100)
    generator = np.random.default_rng(0)
    values, measurements = generator.normal(size=4000), np.repeat(np.arange(4000 // 4), 4) % 2
    values[measurements == 1] -= 500.0  # of another evidence
    for rows in np.split(np.arange(4000), 40):
        storage.append(make_trajectory(100, log_likelihood=values[rows], measurement_id=measurements[rows]))
    kept = storage.column("uid")[storage.slots_by_age()].astype(int)
    assert kept[-100:].tolist() == list(range(3900, 4000))
    for measurement in (0, 1):
        own = np.flatnonzero(measurements[:3900] == measurement)
        best = own[np.argsort(values[own])[-450:]]
        assert set(kept[:-100][measurements[kept[:-100]] == measurement]) == set(best.tolist())
    assert storage.generation(np.arange(1000)).sum() == 4000
    assert storage.evictions == 3000


def test_a_rare_measurement_keeps_its_items_while_a_frequent_one_makes_room(make_trajectory):
    storage = TrajectoryStorage(300 * ITEM, evict_by="likelihood", window=10)
    for _ in range(200):
        storage.append(make_trajectory(10, measurement_id=[1] + [0] * 9, log_likelihood=np.arange(10.0)))
    assert np.bincount(storage.column("measurement_id")).tolist() == [154, 146]  # 145 each beyond the window of 9 and 1


def test_a_smaller_budget_leaves_out_what_eviction_would_have_chosen(make_trajectory):
    storage = TrajectoryStorage(50 * ITEM, evict_by="likelihood", window=5)
    for row in range(10):
        storage.append(make_trajectory(5, log_likelihood=np.arange(5.0) * (row % 2)))
    smaller = TrajectoryStorage(20 * ITEM, evict_by="likelihood", window=5)
    slots, saved = smaller.load_state_dict(*storage.state_dict())
    assert np.array_equal(smaller.column("uid")[slots], storage.column("uid")[saved])
    assert _uids(smaller)[-5:] == [45, 46, 47, 48, 49]
    rest = smaller.column("log_likelihood")[smaller.slots_by_age()[:-5]]
    assert sorted(rest.tolist()) == [1.0] * 3 + [2.0] * 4 + [3.0] * 4 + [4.0] * 4
    assert smaller.evictions == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priority": "importance"}, "importance stands for the posterior only if what is stored is what the actors"),
        ({"priority": {"importance": 0.5, "rank": 0.5}}, "set evict_by to age or take another priority"),
        ({"max_items": 1024}, "spares the newest_window = 1024 newest items, so max_items must be more.* got 1024"),
        ({"newest_window": 63, "insert_batch": 64}, "newest items, which must hold one insert of 64, got 63"),
    ],
)
def test_settings_under_which_eviction_by_likelihood_would_be_wrong_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(evict_by="likelihood", **change)


def test_a_budget_that_holds_no_more_than_the_newest_window_is_refused_at_the_first_insert(make_trajectory):
    shard = ReplayShard(ReplayConfig(evict_by="likelihood", capacity_bytes=1024 * ITEM), 0, seed=0)
    with pytest.raises(ValueError, match=r"the 1024 newest items are safe .* a budget of 46080 bytes holds 1024 items"):
        shard.insert(make_trajectory(8))


def test_draws_of_the_newest_are_the_newest_where_slots_are_no_ring(make_trajectory):
    config = ReplayConfig(
        evict_by="likelihood", newest_share=1.0, newest_window=64, max_items=300, samples_per_insert=None
    )
    shard, generator = ReplayShard(config, 0, seed=0), np.random.default_rng(0)
    for _ in range(30):
        shard.insert(make_trajectory(64, log_likelihood=generator.normal(size=64)))
        if shard.stats().inserts >= 256:
            batch = shard.sample(256)
            newest = shard.stats().inserts - 64
            assert set(batch.trajectory.uid.tolist()) <= set(range(newest, newest + 64))
            assert batch.probability == pytest.approx(np.full(256, 1 / 64))


def test_what_actors_do_not_send_would_not_have_been_kept(make_trajectory):
    """Beyond the window the most likely of all items ever made are stored, filter or not; the pace is the same."""
    config = ReplayConfig(
        evict_by="likelihood", newest_share=0.0, newest_window=32, max_items=232, min_size=64, samples_per_insert=1.0
    )
    plain, filtering = (ReplayShard(config, 0, seed=0) for _ in range(2))
    generator, made, sent = np.random.default_rng(1), [], 0
    for turn in range(40):
        batch = make_trajectory(32, log_likelihood=generator.normal(size=32))
        made += batch.log_likelihood.tolist()
        rows = worth_sending(batch, filtering.floors)
        assert not filtering.floors or (batch.log_likelihood[rows] >= filtering.floors[0]).all()
        sent += len(rows)
        reply = filtering.insert(batch.take(rows), filtered=32 - len(rows))
        assert (reply.stored, reply.floors) == (len(rows), filtering.floors)
        plain.insert(batch)
        for shard in (plain, filtering):
            assert shard.stats().inserts == 32 * (turn + 1)
            shard.sample(32)
    best = np.sort(np.array(made[:-32], dtype=np.float32))[-200:]
    for shard in (plain, filtering):
        assert set(best.tolist()) <= set(shard.sample(50_000).trajectory.log_likelihood.tolist())
    assert filtering.stats().filtered == len(made) - sent > 500
    restored = ReplayShard(config, 0, seed=0)
    restored.load_state_dict(*filtering.state_dict())
    assert (restored.stats(), restored.floors) == (filtering.stats(), filtering.floors)


def test_nothing_is_filtered_while_there_is_room_or_where_the_newest_are_drawn(make_trajectory):
    config = ReplayConfig(evict_by="likelihood", newest_window=32, max_items=64, min_size=32, samples_per_insert=None)
    always, never = (ReplayShard(dataclasses.replace(config, newest_share=share), 0, seed=0) for share in (0.5, 0.0))
    for shard in (always, never):
        shard.insert(make_trajectory(32, log_likelihood=np.arange(32.0)))
        assert shard.floors == {}
        shard.insert(make_trajectory(32, log_likelihood=1.0))
    assert (always.floors, never.floors) == ({}, {0: 0.0})
    assert worth_sending(make_trajectory(4, log_likelihood=[-1.0, 0.0, np.nan, 2.0]), never.floors).tolist() == [
        1,
        2,
        3,
    ]
