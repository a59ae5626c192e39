"""`max_staleness`: what is too far behind the newest policy is no longer drawn, whatever the priority."""

import numpy as np
import pytest

from system.replay.config import ReplayConfig
from system.replay.priority import PRIORITY_NAMES
from system.replay.shard import ReplayShard


def _shard(priority="uniform", **changes):
    settings = {"samples_per_insert": None, "min_size": 1, "insert_batch": 100, "newest_window": 50, "max_items": 400}
    return ReplayShard(ReplayConfig(**{**settings, "priority": priority, "max_staleness": 3, **changes}), 0, seed=0)


def _filled(make_trajectory, priority="uniform", **changes):
    """Ten versions of 30 items each, 0..9, so that those of 6 and later may be drawn."""
    shard = _shard(priority, **changes)
    for version in range(10):
        shard.insert(make_trajectory(30, policy_version=version))
    return shard


def _drawn_versions(shard, draws=200):
    return np.concatenate([shard.sample(64).trajectory.policy_version for _ in range(draws)])


@pytest.mark.parametrize("newest_share", [0.0, 0.5])
@pytest.mark.parametrize("priority", PRIORITY_NAMES)
def test_only_fresh_items_are_drawn_and_all_of_them(make_trajectory, priority, newest_share):
    shard = _filled(make_trajectory, priority, newest_share=newest_share)
    assert set(np.unique(_drawn_versions(shard))) == {6, 7, 8, 9}
    assert (len(shard), shard.stats().stale) == (300, 180)


@pytest.mark.parametrize("priority", ["uniform", "importance", "rank"])
def test_probabilities_are_those_of_the_fresh_items(make_trajectory, priority):
    shard = _filled(make_trajectory, priority, newest_share=0.3)
    probability = {}
    for _ in range(300):
        batch = shard.sample(64)
        probability |= dict(zip(batch.ids.slot.tolist(), batch.probability.tolist(), strict=True))
    assert len(probability) == 120
    assert sum(probability.values()) == pytest.approx(1.0, rel=1e-9)


def test_the_window_of_the_newest_holds_no_stale_items(make_trajectory):
    shard = _filled(make_trajectory, newest_share=1.0, newest_window=200)
    assert set(np.unique(_drawn_versions(shard))) == {6, 7, 8, 9}
    assert set(np.unique(shard.starts(500, "age").policy_version)) == {6, 7, 8, 9}
    assert shard.starts(500, "likelihood").policy_version.min() >= 6


def test_items_overwritten_and_late_ones_are_counted_once(make_trajectory):
    shard = _filled(make_trajectory, max_items=200)  # versions 0..3 lost their slots
    assert (len(shard), shard.stats().stale) == (200, 80)
    shard.insert(make_trajectory(30, policy_version=7))  # of an actor that is behind, but not too far
    assert (shard.stats().stale, set(np.unique(_drawn_versions(shard)))) == (50, {6, 7, 8, 9})
    shard.insert(make_trajectory(30, policy_version=11))
    assert (shard.stats().stale, set(np.unique(_drawn_versions(shard)))) == (80, {8, 9, 7, 11})


def test_a_late_residual_does_not_bring_a_stale_item_back(make_trajectory):
    shard = _shard("residual", newest_share=0.0)
    shard.insert(make_trajectory(30, policy_version=0))
    ids = shard.sample(30).ids
    shard.insert(make_trajectory(30, policy_version=9))
    assert shard.update_priorities(ids, np.full(30, 100.0)) == 0
    assert set(np.unique(_drawn_versions(shard))) == {9}


def test_stale_items_stay_so_over_a_checkpoint(make_trajectory):
    shard = _filled(make_trajectory, "importance")
    for max_items in (400, 250):
        restored = _shard("importance", max_items=max_items)
        restored.load_state_dict(*shard.state_dict())
        assert restored.stats().stale == max_items - 120 - (max_items == 400) * 100
        assert set(np.unique(_drawn_versions(restored))) == {6, 7, 8, 9}


def test_without_a_limit_everything_is_drawn(make_trajectory):
    assert len(np.unique(_drawn_versions(_filled(make_trajectory, max_staleness=None)))) == 10


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="max_staleness must be at least 0 or null, got -1"):
        ReplayConfig(max_staleness=-1)
    with pytest.raises(ValueError, match="evict_by likelihood keeps items however old, which max_staleness 4"):
        ReplayConfig(max_staleness=4, evict_by="likelihood", max_items=5000)


def test_a_learner_that_goes_back_to_its_checkpoint_goes_on_drawing(make_trajectory):
    shard = _filled(make_trajectory, newest_share=0.5)
    shard.insert(make_trajectory(30, policy_version=2))
    shard.insert(make_trajectory(30, policy_version=3))
    assert {2, 3} <= set(np.unique(_drawn_versions(shard)))
    shard.insert(make_trajectory(30, policy_version=7))
    assert 7 in np.unique(_drawn_versions(shard))
