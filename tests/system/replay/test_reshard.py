"""A checkpoint of S shards in S' shards."""

import json

import numpy as np
import pytest

from system.replay.config import ReplayConfig
from system.replay.messages import ItemIds
from system.replay.rate_limiter import RateLimiter, split_limiters
from system.replay.reshard import reshard
from system.replay.shard import ReplayShard

ITEM = 45  # bytes of one item of the fixture


def _config(**changes):
    return ReplayConfig(**{"min_size": 64, "insert_batch": 32, "sample_batch": 64, "capacity_bytes": 10**5} | changes)


def _shards(make_trajectory, config, count, rounds=20):
    shards, generator = [ReplayShard(config, index, seed=0) for index in range(count)], np.random.default_rng(0)
    for _ in range(rounds):
        for shard in shards:
            values, groups = generator.normal(size=32), generator.integers(3, size=32)
            shard.insert(make_trajectory(32, log_likelihood=values, measurement_id=groups))
            batch = shard.sample(64)
            if batch is not None:
                shard.update_priorities(batch.ids, generator.normal(size=64))
    return shards


def _load(config, shards, count):
    states = reshard(
        [(arrays, json.loads(json.dumps(scalars))) for arrays, scalars in (s.state_dict() for s in shards)], count
    )
    loaded = [ReplayShard(config, index, seed=9) for index in range(count)]
    for shard, state in zip(loaded, states, strict=True):
        shard.load_state_dict(state[0], json.loads(json.dumps(state[1])))
    return loaded


def _items(shards):
    """{uid: (log-likelihood, |residual|)}."""
    items = {}
    for shard in shards:
        columns = [shard._storage.column("uid"), shard._storage.column("log_likelihood"), shard._residual[: len(shard)]]
        for uid, *rest in zip(*(column.tolist() for column in columns), strict=True):
            assert uid not in items
            items[uid] = tuple(rest)
    return items


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2), (2, 5), (4, 1)])
@pytest.mark.parametrize("evict_by", ["age", "likelihood"])
def test_no_item_is_lost_or_doubled_and_each_shard_has_as_many_of_every_age(make_trajectory, before, after, evict_by):
    config = _config(priority="residual", evict_by=evict_by, newest_window=50)
    shards = _shards(make_trajectory, config, before)
    loaded = _load(config, shards, after)
    assert _items(loaded) == _items(shards)
    sizes = [len(shard) for shard in loaded]
    assert max(sizes) - min(sizes) <= 1
    order = sorted(_items(shards))  # uids count up, so this is by age within each shard
    for shard in loaded:
        own = shard._storage.column("uid")[shard._storage.slots_by_age()]
        newest = [order.index(uid) for uid in own[-5:]]
        assert min(newest) > len(order) * 0.8


@pytest.mark.parametrize("priority", ["uniform", "residual", "likelihood", "importance", "rank", "reshuffled"])
def test_the_masses_are_those_of_one_shard_that_got_everything(make_trajectory, priority):
    config = _config(priority=priority, newest_share=0.0)
    shards = _shards(make_trajectory, config, 3, rounds=3)
    (loaded,) = _load(config, shards, 1)
    known = np.isfinite(loaded._residual[: len(loaded)])
    assert 20 < np.count_nonzero(known) < len(loaded) + (priority == "reshuffled")
    (own,) = loaded._priorities.values()
    probability = own.probability(np.arange(len(loaded)), 1)
    values = loaded._storage.column("log_likelihood").astype(np.float64)
    groups, residual = loaded._storage.column("measurement_id"), loaded._residual[: len(loaded)]
    if priority in ("uniform", "reshuffled"):
        expected = np.ones(len(loaded))
    elif priority == "residual":
        expected = np.where(known, np.maximum(residual, 1e-6), residual[known].max())
    elif priority == "rank":
        likelier = [np.count_nonzero(values[groups == g] > v) for g, v in zip(groups, values, strict=True)]
        expected = 1 / (0.01 * np.bincount(groups)[groups] + 1 + np.array(likelier))
        expected /= np.bincount(groups, expected)[groups]
    else:
        weight = np.exp(values)
        if priority == "importance":
            weight = np.minimum(weight, (np.bincount(groups, weight) / np.sqrt(np.bincount(groups)))[groups])
        expected = weight / np.bincount(groups, weight)[groups]
    assert probability == pytest.approx(expected / expected.sum(), rel=1e-6)


def test_a_budget_that_does_not_hold_all_keeps_the_newest_of_all_shards(make_trajectory):
    config = _config(max_items=500)
    shards = _shards(make_trajectory, config, 2, rounds=12)
    newest = [sorted(_items([shard]))[-250:] for shard in shards]  # uids count up
    (loaded,) = _load(config, shards, 1)
    assert sorted(_items([loaded])) == sorted(newest[0] + newest[1])
    assert loaded.stats().evictions == sum(len(shard) for shard in shards) - 500 > 0


def test_ids_from_before_are_void(make_trajectory):
    config = _config(priority="residual")
    shards = _shards(make_trajectory, config, 2)
    ids = shards[0].sample(64).ids
    loaded = _load(config, shards, 3)
    for index, shard in enumerate(loaded):
        renamed = ItemIds(shard=np.full(64, index), slot=ids.slot, generation=ids.generation)
        assert shard.update_priorities(renamed, np.ones(64)) == 0
        batch = shard.sample(64)
        assert batch is None or shard.update_priorities(batch.ids, np.ones(64)) == 64


@pytest.mark.parametrize("after", [1, 2, 3, 7])
def test_counters_are_split_and_the_sum_of_the_errors_stays(make_trajectory, after):
    config = _config()
    shards = _shards(make_trajectory, config, 3, rounds=25)
    shards[0].sample(64)
    loaded = _load(config, shards, after)
    for name in ("inserts", "samples", "duplicates", "late_priorities", "blocked_samples", "blocked_inserts"):
        assert sum(getattr(s.stats(), name) for s in loaded) == sum(getattr(s.stats(), name) for s in shards), name
    error = sum(shard._limiter.error for shard in shards)
    assert error != 0
    assert sum(shard._limiter.error for shard in loaded) == pytest.approx(error)
    assert max(s._limiter.error for s in loaded) - min(s._limiter.error for s in loaded) <= 1 + 4.0


def test_more_shards_go_on_at_once_and_in_their_pace(make_trajectory):
    config = _config()
    loaded = _load(config, _shards(make_trajectory, config, 1, rounds=30), 4)
    for shard in loaded:
        for _ in range(200):
            if not shard.insert(make_trajectory(32)).accepted or shard.stats().blocked_samples == 0:
                shard.sample(64)
        stats = shard.stats()
        assert stats.samples > 1000
        assert abs(shard._limiter.error) <= 0.1 * 4 * 64 + 2 * (64 + 4 * 32)
        again = ReplayShard(config, 0, seed=0)  # a further checkpoint, as many shards: the pace stays
        again.load_state_dict(*shard.state_dict())
        assert again._limiter.error == shard._limiter.error


def test_a_first_fill_that_is_not_over_goes_on(make_trajectory):
    states = []
    for inserts in (10, 90):
        limiter = RateLimiter(4.0, 100, 500.0)
        limiter.inserted(inserts)
        states.append(limiter.state_dict())
    for state in split_limiters(states, 3):
        limiter = RateLimiter(4.0, 100, 500.0)
        limiter.load_state_dict(state)
        assert not limiter.can_sample(1)
        assert limiter.inserts in (33, 34)
        limiter.inserted(67)
        assert limiter.can_sample(1)


def test_empty_shards_make_empty_shards(make_trajectory):
    config = _config()
    loaded = _load(config, [ReplayShard(config, index, seed=0) for index in range(2)], 3)
    for shard in loaded:
        assert len(shard) == 0
        assert shard.insert(make_trajectory(32)).stored == 32
    full = _load(config, [loaded[0], ReplayShard(config, 1, seed=0)], 40)
    assert sum(len(shard) for shard in full) == 32


def test_a_shard_in_its_first_fill_counts_none_of_its_items_for_the_pace(make_trajectory):
    limiters = [RateLimiter(4.0, 100, 5000.0) for _ in range(2)]
    limiters[0].inserted(40)
    limiters[1].inserted(300)
    limiters[1].sampled(500)
    (state,) = split_limiters([limiter.state_dict() for limiter in limiters], 1)
    together = RateLimiter(4.0, 100, 5000.0)
    together.load_state_dict(state)
    assert together.error == limiters[0].error + limiters[1].error == 500 - 200 * 4
