"""Whole runs, long enough to be judged against the exact posterior."""

import json
from pathlib import Path

import pytest

from system.config_file import load_config
from system.run import train
from system.run_directory import RunDirectory

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "gmm_linear.yaml"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_a_mixture_posterior_is_learned_with_the_weights_of_its_modes(tmp_path, dim):
    """Eight modes; evidence to a tenth of a nat, mode probabilities to the L1 distance asked of digits-half."""
    flags = ["--problem.dim", str(dim), "--runner", "local", "--updates", "1500"]
    train(load_config(CONFIG, flags), tmp_path / "run", quiet=True)
    metrics = json.loads(RunDirectory.open(tmp_path / "run").results.read_text())["metrics"]
    assert abs(metrics["eval/iw_log_partition"] - metrics["eval/exact_log_partition"]) < 0.1
    assert metrics["eval/class_l1"] < 0.15
    assert metrics["eval/gap"] - metrics["eval/discretisation"] < 1.0
