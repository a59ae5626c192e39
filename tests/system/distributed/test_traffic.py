"""Many processes on one shard."""

import pytest

pytest.importorskip("ray")

from benchmarks.replay_traffic import traffic
from system.config_file import config_from_tree


@pytest.mark.slow
def test_eight_writers_and_two_readers_lose_double_and_mix_up_nothing():
    config = config_from_tree({"runner": "ray", "replay": {"samples_per_insert": None, "min_size": 64}}, "test")
    figures = traffic(config, 2.0)
    assert figures["traffic_inserts_per_second"] > 0 and figures["traffic_samples_per_second"] > 0
    for name in ("lost", "stored_twice", "resent_and_not_told", "mixed_up", "late_priorities"):
        assert figures[f"traffic_{name}"] == 0, name
