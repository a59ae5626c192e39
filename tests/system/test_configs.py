"""Every configuration that ships loads, builds, takes one step and can be judged."""

from pathlib import Path

import numpy as np
import pytest

from envs.likelihoods import RelaxedLikelihood
from system.assembly import build_problem
from system.config_file import load_config
from system.judge import judge
from system.local import LocalRunner

EXPERIMENTS = sorted((Path(__file__).parents[2] / "configs" / "experiments").glob("*.yaml"))
SMALL = {
    "--runner": "local",
    "--updates": "1",
    "--max-seconds": "null",
    "--actor.batch-size": "8",
    "--actor.path-search.population": "8",
    "--learner.batch-size": "8",
    "--learner.warmup-updates": "0",
    "--replay.min-size": "8",
    "--evaluation.trajectories": "4",
}


def test_the_main_job_and_the_exact_check_ship():
    assert {"digits_half", "gaussian_linear"} <= {path.stem for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_configuration_takes_one_step_that_changes_the_weights(path):
    config = load_config(path, [word for pair in SMALL.items() for word in pair])
    problem = build_problem(config)
    runner = LocalRunner(config, problem)
    before = runner.weights()
    metrics = {}
    while not runner.finished:  # a slice ends without an update where replay fills slowly
        metrics = runner.advance()
    assert runner.updates == 1 and metrics["learner/set_aside"] == 0 and np.isfinite(metrics["learner/loss"])
    assert (runner.weights() != before).any() and np.isfinite(runner.weights()).all()
    judgement = judge(config, problem, runner.weights(), quick=True)
    evaluation, log_weight = judgement.evaluation, judgement.draws.log_weight.numpy()
    assert judgement.draws.samples.shape == (4, *problem.event_shape)
    if isinstance(problem.likelihood, RelaxedLikelihood):  # zero in places, and q hardly reaches where it is not
        assert (log_weight < np.inf).all()
    else:
        assert np.isfinite(evaluation.elbo) and np.isfinite(log_weight).all()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_configuration_starts_with_a_sentence_and_names_itself(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and load_config(path).name == path.stem.replace("_", "-")
