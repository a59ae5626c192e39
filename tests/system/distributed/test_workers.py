"""What a worker does within a slice, in this process: its peers are plain objects that answer at once."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest

from system.distributed import workers
from system.distributed.runner import RayRunner
from system.distributed.supervisor import Supervisor, Worker
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


def test_a_rollout_worker_does_not_send_what_would_be_evicted_at_once(in_process, tiny):
    config = tiny()
    replay = dataclasses.replace(
        config.replay, evict_by="likelihood", newest_share=0.0, newest_window=16, max_items=80, samples_per_insert=None
    )
    config = dataclasses.replace(config, replay=replay)
    shard, worker = ShardWorker(config, 0), RolloutWorker(config, 0, 0)
    sent, insert = [], shard.insert

    def watched(trajectory, filtered):
        sent.append((trajectory.log_likelihood, shard._shard.floors, filtered))
        return insert(trajectory, filtered)

    shard.insert = watched
    made = 0
    while made < 320:
        made += worker.work(0.1, Peers(shards=(Answering(shard),), store=Answering(WeightStore()), timeout=5.0))[
            "trajectories"
        ]
    assert all((values >= floors.get(0, -np.inf)).all() for values, floors, _ in sent)
    assert shard.stats()["filtered"] == sum(filtered for _, _, filtered in sent) > 0
    assert made == shard.stats()["inserts"] == sum(len(values) + filtered for values, _, filtered in sent)


def test_a_learner_that_starves_ends_the_run_with_what_replay_holds_and_has_refused(tiny):
    runner = object.__new__(RayRunner)  # its constructor starts a cluster
    runner.config, runner._progress, runner._learned_at = tiny(timeout_seconds=6.0), 0.0, time.monotonic() - 7
    runner.supervisor = SimpleNamespace(
        workers=[SimpleNamespace(starting=None)] * 3,
        calls=0,
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


def test_a_rollout_worker_keeps_to_the_likelihood_calls_it_is_allowed_and_makes_up_for_what_it_overran(
    in_process, tiny
):
    config = tiny()
    posterior = dataclasses.replace(config.posterior, likelihood_gradient="none")
    replay = dataclasses.replace(config.replay, samples_per_insert=None)
    config = dataclasses.replace(config, posterior=posterior, replay=replay)
    worker = RolloutWorker(config, 0, 0)
    peers = Peers(shards=(Answering(ShardWorker(config, 0)),), store=Answering(WeightStore()), timeout=5.0)
    made = [worker.work(60.0, peers, allowed)["calls"] for allowed in (40, 40, 40, 1, 1, 40)]
    assert made == [48, 32, 48, 0, 0, 48]  # by sixteen until 40, 40 - 8, 40, 1 - 8, 1 - 7 and 40 - 6 are reached
    assert sum(made) < 40 + 40 + 40 + 1 + 1 + 40 + 16


def test_actors_share_the_likelihood_calls_that_are_left_and_are_promised_no_more(tiny):
    supervisor = object.__new__(Supervisor)  # its constructor starts workers
    supervisor.config = dataclasses.replace(tiny(), max_likelihood_calls=1_000)
    supervisor.calls, supervisor.actors = 200, [Worker("actor", 0), Worker("actor", 1)]
    promised = []
    while (allowed := supervisor._allowance()) > 0:
        supervisor.actors[len(promised) % 2].allowed.append(allowed)
        promised.append(allowed)
    assert promised[:3] == [200, 150, 112] and sum(promised) == 800 and min(promised[:-1]) == 16
    supervisor.actors[0].allowed.clear()  # it died, and its slices with it: what they were promised is there again
    assert supervisor._allowance() == sum(promised[::2]) // 4
    supervisor.calls = 1_016
    assert supervisor._allowance() == 0
    supervisor.config = tiny()
    assert supervisor._allowance() is None


def test_a_distributed_run_is_at_its_end_when_the_workers_have_reported_all_likelihood_calls(tiny):
    runner = object.__new__(RayRunner)
    runner.config, runner._progress = dataclasses.replace(tiny(), max_likelihood_calls=1_000), 0.1
    runner.supervisor = SimpleNamespace(calls=500)
    assert runner.progress == 0.5 and not runner.finished
    runner.supervisor.calls = 1_008
    assert runner.progress == 1 and runner.finished
    runner.config = tiny()
    assert runner.progress == 0.1
