"""Workers are killed, stopped and broken while a run goes on."""

import signal
import time

import numpy as np
import pytest
import ray

from system.errors import RunnerError


def held_uids(run):
    """Uids in the replay of the last checkpoint."""
    return run.store.load(only=("replay-0",)).parts["replay-0"].arrays["storage.uid"]


def lives(uids):
    """(actor, life) pairs among uids: 36 bits count trajectories, 12 the lives of an actor."""
    return {(int(uid) >> 48, (int(uid) >> 36) & 4095) for uid in uids}


def test_a_run_trains_and_outlives_the_death_of_each_of_its_processes(start, tiny):
    run = start(tiny(timeout_seconds=20.0))  # nothing hangs here: no slow machine may be taken for that
    supervisor = run.supervisor

    # It trains: updates come, the loss falls, weights reach the actors, the pace is kept.
    first = run.until(lambda m: m.get("learner/updates", 0) >= 10 and "replay/size" in m)
    actor = supervisor.actors[0].handle
    version, checksum = ray.get(actor.policy.remote(), timeout=30)
    after = run.until(lambda m: m["learner/updates"] >= 400)
    later_version, later_checksum = ray.get(actor.policy.remote(), timeout=30)
    assert later_version >= version + 200 and later_checksum != checksum
    assert after["actor/version"] >= 200 and after["learner/lag_mean"] >= 0
    assert after["learner/loss"] < first["learner/loss"]
    assert abs(after["replay/samples_per_insert_error"]) < 0.1
    assert after["replay/samples_per_insert"] == pytest.approx(4, rel=0.1)
    assert 0 <= after["learner/wait"] <= 1 and 0 < after["learner/publish"] < 0.5
    assert after["actor/alive"] == 2 and after["actor/trajectories"] > 1000
    saved = run.save()
    assert saved >= 400
    assert lives(held_uids(run)) == {(0, 0), (1, 0)}

    # An actor is killed: another takes its place, with a random stream and uids of its own.
    run.kill(actor)
    metrics = run.until(lambda m: m["actor/restarts"] == 1 and m["actor/alive"] == 2)
    started = metrics["learner/updates"]
    run.until(lambda m: m["learner/updates"] > started + 100)
    run.save()
    assert (0, 1) in lives(held_uids(run))
    assert metrics["learner/restarts"] == metrics["replay/restarts"] == 0

    # The learner is killed: its successor starts at the checkpoint; replay and actors stay.
    at_checkpoint = run.store.load(only=("run",)).parts["run"].scalars["updates"]
    inserts = metrics["replay/inserts"]
    processes = [run.process_of(worker.handle) for worker in supervisor.actors]
    run.kill(supervisor.learner.handle)
    metrics = run.until(lambda m: m["learner/restarts"] == 1 and supervisor.learner.starting is None)
    metrics = run.until(lambda m: m["learner/updates"] > at_checkpoint)
    assert metrics["replay/inserts"] >= inserts and metrics["actor/restarts"] == 1
    assert [run.process_of(worker.handle) for worker in supervisor.actors] == processes
    run.until(lambda m: abs(m["actor/version"] - m["learner/updates"]) < 100)  # its weights reach the actors
    assert np.isfinite(run.runner.weights()).all()

    # The shard is killed: its last snapshot comes back, what came since is counted as lost.
    run.save()
    snapshot = run.store.load(only=("replay-0",)).parts["replay-0"].scalars["limiter"]["inserts"]
    run.until(lambda m: m["replay/inserts"] > snapshot + 300)
    run.kill(supervisor.shards[0])
    metrics = run.until(lambda m: m["replay/restarts"] == 1)
    assert metrics["replay/lost"] >= 300
    updates = metrics["learner/updates"]
    metrics = run.until(lambda m: m["learner/updates"] > updates + 100)
    assert metrics["replay/inserts"] >= snapshot and metrics["learner/restarts"] == 1

    # The weight store is killed: the learner fills a new one.
    changed = supervisor.changed
    run.kill(supervisor.store)
    metrics = run.until(lambda m: m["learner/updates"] > updates + 300)
    assert supervisor.changed > changed  # waiting for it was not starvation of the learner
    updates = metrics["learner/updates"]
    run.until(lambda m: m["actor/version"] > updates)
    assert metrics["actor/restarts"] == metrics["learner/restarts"] == metrics["replay/restarts"] == 1

    # A bug in a worker ends the run with one line that names worker and error.
    ray.get(supervisor.actors[0].handle.__ray_call__.remote(break_actor), timeout=30)
    seven = r"^actor 0 failed in RolloutWorker.work: ZeroDivisionError: seven by zero \(.*test_faults.py, line \d+\)$"
    with pytest.raises(RunnerError, match=seven):
        run.until(lambda m: False)


def break_actor(worker):
    """Makes the next rollout fail."""

    def act(starts):
        raise ZeroDivisionError("seven by zero")

    worker._actor.act = act


@pytest.mark.slow
def test_a_hung_actor_and_a_hung_shard_are_replaced_after_the_timeout(start, tiny):
    run = start(tiny())
    supervisor = run.supervisor
    run.until(lambda m: m["learner/updates"] >= 50)

    stopped = run.kill(supervisor.actors[1].handle, signal.SIGSTOP)
    begun = time.monotonic()
    run.until(lambda m: m["actor/restarts"] == 1 and m["actor/alive"] == 2)
    assert time.monotonic() - begun < 40
    assert run.process_of(supervisor.actors[1].handle) != stopped

    run.save()
    run.kill(supervisor.shards[0], signal.SIGSTOP)
    metrics = run.until(lambda m: m["replay/restarts"] == 1)
    updates = metrics["learner/updates"]
    run.until(lambda m: m["learner/updates"] > updates + 100)

    # A bug in a peer is named as such.
    ray.get(supervisor.shards[0].__ray_call__.remote(break_shard), timeout=30)
    with pytest.raises(
        RunnerError, match=r"failed in ShardWorker.sample: ZeroDivisionError: nine by zero \(.*py, line \d+"
    ):
        run.until(lambda m: False)


def break_shard(worker):
    """Makes the next draw fail."""

    def sample(*_, **__):
        raise ZeroDivisionError("nine by zero")

    worker._shard.sample = sample


def make_likelihood_sleep(worker):
    """From now on no call of this actor's likelihood returns."""
    likelihood = worker._problem.likelihood
    type(likelihood).log_prob = lambda self, value, measurement: time.sleep(600)


@pytest.mark.slow
def test_an_actor_whose_likelihood_hangs_is_replaced_and_after_its_restarts_the_run_ends_with_its_name(start, tiny):
    run = start(tiny(num_actors=1, max_restarts=2, timeout_seconds=3.0))
    run.until(lambda m: m["learner/updates"] >= 20)
    actor = run.supervisor.actors[0]
    message = (
        r"^actor 0 is lost after 2 restarts \(the likelihood of problem 'gmm-linear' \(GaussianLikelihood\), asked for "
        r"16 x, has not returned within 1\.5 s"
    )
    with pytest.raises(RunnerError, match=message):
        for restarts in range(3):
            ray.get(actor.handle.__ray_call__.remote(make_likelihood_sleep), timeout=30)
            run.until(lambda m, wanted=restarts + 1: actor.restarts == wanted and actor.starting is None)
