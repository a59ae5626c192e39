"""Two shards of unlike contents on Ray, and their checkpoint in three and in one."""

import dataclasses

import pytest

from system.assembly import build_problem
from system.distributed.runner import RayRunner


@pytest.mark.slow
def test_a_run_of_two_shards_goes_on_with_three_and_with_one_and_loses_no_item(start, tiny, tmp_path):
    config = tiny(num_shards=2)
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, priority="importance"))
    run = start(config)
    run.until(lambda m: m["learner/updates"] >= 100)
    run.save()
    saved = run.store.load()
    stats = [saved.parts[f"replay-{index}"].scalars["limiter"] for index in range(2)]
    assert stats[0]["samples"] == pytest.approx(stats[1]["samples"], abs=6 * config.learner.batch_size)
    items = sum(len(saved.parts[f"replay-{index}"].arrays["residual"]) for index in range(2))
    run.runner.close()
    for number in (3, 1):
        again = dataclasses.replace(config, ray=dataclasses.replace(config.ray, num_shards=number))
        path = tmp_path / str(number)
        path.mkdir()
        runner = RayRunner(again, build_problem(again), path)
        try:
            runner.load(saved.parts)
            runner.supervisor.refresh_shard_stats()
            assert sum(shard["size"] for shard in runner.supervisor.shard_stats) == min(items, number * 4096)
            before = runner.updates
            while runner.updates < before + 50:
                runner.advance()
            errors = [shard["samples_per_insert_error"] for shard in runner.supervisor.shard_stats]
            assert max(map(abs, errors)) < 0.5
        finally:
            runner.close()
