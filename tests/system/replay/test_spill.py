"""Trajectories in files mapped into memory."""

import errno
import gc
import os

import numpy as np
import pytest

from system.errors import ConfigError
from system.replay.config import ReplayConfig
from system.replay.shard import ReplayShard
from system.replay.spill import mapped_array


def _config(directory, **changes):
    settings = {"samples_per_insert": None, "min_size": 1, "max_items": 500, "newest_window": 64, "priority": "rank"}
    return ReplayConfig(**settings, spill_directory=directory, **changes)


@pytest.mark.parametrize("evict_by", ["age", "likelihood"])
def test_a_spilled_shard_gives_what_one_in_memory_gives_after_a_round_trip_too(build_trajectory, tmp_path, evict_by):
    generator = np.random.default_rng(0)
    configs = [_config(directory, evict_by=evict_by) for directory in (None, str(tmp_path / "deep" / "spill"))]
    shards = [ReplayShard(config, 0, seed=0) for config in configs]
    for turn in range(40):
        uids = range(64 * turn, 64 * turn + 64)
        samples, values = generator.normal(size=(2, 64))
        trajectory = build_trajectory(uids, samples=samples, log_likelihood=values)
        ours, theirs = (shard.insert(trajectory) and shard.sample(64) for shard in shards)
        for name, value in ours.trajectory.arrays().items():
            np.testing.assert_array_equal(value, theirs.trajectory.arrays()[name])
        if turn == 20:
            state = shards[1].state_dict()
            shards[1] = ReplayShard(configs[1], 0, seed=1)
            shards[1].load_state_dict(*state)
    arrays = shards[1]._storage._arrays
    assert {name for name, value in arrays.items() if isinstance(value.base, np.memmap)} == {"states", "log_prior"}
    assert theirs.trajectory.states.base is None  # a copy


def test_a_file_has_no_name_and_its_room_comes_back_with_the_array(tmp_path):
    def open_files():
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        maps = open("/proc/self/maps", encoding="utf-8").read()  # noqa: SIM115
        return sum(str(tmp_path) in os.readlink(link) for link in links if os.path.lexists(link)) + maps.count(
            str(tmp_path)
        )

    array = mapped_array(tmp_path, (1000, 3), np.dtype(np.float32))
    array[:] = 1.0
    assert array.sum() == 3000 and not list(tmp_path.iterdir()) and open_files() > 0
    del array
    gc.collect()
    assert open_files() == 0


def test_a_full_disk_and_a_directory_that_cannot_be_are_one_line_with_a_remedy(make_trajectory, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"replay.spill_directory: no room for 4,000 bytes .*file/x: Not a directory"):
        mapped_array(tmp_path / "file" / "x", (1000,), np.dtype(np.float32))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"no room for 4,000 bytes .*: No space left on device; lower replay.capac"):
        ReplayShard(_config(str(tmp_path)), 0, seed=0).insert(make_trajectory(8))
