"""A budget of likelihood calls on Ray: where a run ends, and that a resumed one remembers."""

import dataclasses

import pytest

from system.assembly import build_problem
from system.distributed.runner import RayRunner

ACTORS, BATCH, BUDGET = 2, 16, 3_000


@pytest.mark.slow
def test_a_run_on_ray_ends_with_its_likelihood_calls_and_a_resumed_one_has_what_is_left(start, tiny, tmp_path):
    config = tiny(num_actors=ACTORS)
    without_gradient = dataclasses.replace(config.posterior, likelihood_gradient="none")
    config = dataclasses.replace(config, posterior=without_gradient, max_likelihood_calls=BUDGET)
    run = start(config)
    metrics = run.until(lambda m: m["system/likelihood_calls"] > 500)
    assert 0 < metrics["system/progress"] < 1
    run.save()
    parts = run.store.load().parts
    before = parts["run"].scalars["likelihood_calls"]
    assert 500 < before < BUDGET
    run.runner.close()

    again = RayRunner(config, build_problem(config), tmp_path)
    try:
        again.load(parts)
        made = 0.0
        while not again.finished:
            metrics = again.advance()
            made = max(made, metrics.get("actor/trajectories", 0.0))
        assert BUDGET <= again.supervisor.calls < BUDGET + ACTORS * BATCH
        assert made <= again.supervisor.calls  # a call for each path, and some for batches that were under way
    finally:
        again.close()
