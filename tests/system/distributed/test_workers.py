"""What a worker does within a slice, in this process: its peers are plain objects that answer at once."""

import time
from types import SimpleNamespace

import pytest

from system.distributed import workers
from system.distributed.runner import RayRunner
from system.distributed.workers import Peers, RolloutWorker, ShardWorker, WeightStore
from system.errors import RunnerError


class Answering:
    """Stands for a Ray handle: `handle.method.remote(...)` calls the object and gives its answer itself."""

    def __init__(self, target) -> None:
        self._target = target

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._target, name))


@pytest.fixture
def in_process(monkeypatch):
    """Answers are not references here, so `ray.get` has nothing to do; and workers are not to slow down the tests."""
    monkeypatch.setattr(workers.ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(workers.os, "nice", lambda increment: 0)


def test_a_rollout_worker_makes_no_trajectory_before_there_is_room_for_it(in_process, tiny, monkeypatch):
    config = tiny()
    shard, worker = ShardWorker(config, 0), RolloutWorker(config, 0, 0)
    peers = Peers(shards=(Answering(shard),), store=Answering(WeightStore()), timeout=1.0)
    made = []
    act = worker._actor.act
    monkeypatch.setattr(worker._actor, "act", lambda *given: made.append(1) or act(*given))

    filled = worker.work(0.5, peers)  # nothing is sampled: inserts end once they are ahead by the tolerance
    assert filled["trajectories"] == 16 * len(made) == shard.stats()["inserts"] >= config.replay.min_size
    assert worker._pending is None and filled["blocked"] > 0

    made.clear()
    waiting = worker.work(0.1, peers)
    assert made == [] and waiting["trajectories"] == 0 and waiting["blocked"] > 0

    shard.sample(32)
    assert worker.work(0.1, peers)["trajectories"] == 16 * len(made) > 0


def test_a_learner_that_starves_ends_the_run_with_what_replay_holds_and_has_refused(tiny):
    runner = object.__new__(RayRunner)  # its constructor starts a cluster
    runner.config, runner._progress, runner._learned_at = tiny(timeout_seconds=6.0), 0.0, time.monotonic() - 7
    runner.supervisor = SimpleNamespace(
        workers=[SimpleNamespace(starting=None)] * 3,
        changed=time.monotonic() - 7,
        shards=[None, None],
        shard_stats=[{"size": 0, "refused": 48}, {"size": 3, "refused": 16}],
    )
    with pytest.raises(RunnerError) as error:
        runner._check_starvation()
    assert str(error.value) == (
        "the learner has waited 7 s for a batch from 2 shards; replay holds 3 items (replay.min_size, a shard: 64) and "
        "has refused 64 with a state or a likelihood that is not finite; 0 of 3 workers wait for a CPU"
    )
    runner.supervisor.changed = time.monotonic() - 5  # a process came up meanwhile: it gets its time
    runner._check_starvation()
