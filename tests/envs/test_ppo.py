import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ppo_gaussian_linear.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("ppo_gaussian_linear", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def check_between_prior_and_ceiling(example, steps, at_least):
    """The return of a trained PPO, averaged over 20,000 chains, random actions included and not."""
    model, curve = example.train(steps, every=steps)
    exact = example.Chains(1).env.problem.exact[0]
    prior, prior_error = example.mean_return(lambda seen: np.zeros_like(seen["state"]), 20_000)
    mean, error = example.mean_return(lambda seen: model.predict(seen, deterministic=True)[0], 20_000)
    noisy, noisy_error = example.mean_return(lambda seen: model.predict(seen)[0], 20_000)
    assert curve.returns[0][0] == pytest.approx(prior, abs=0.5)  # PPO starts near u = 0
    assert mean > prior + 10 * (prior_error + error)
    assert mean > at_least
    # A ceiling twice: for what any control can reach, and for what any policy can.
    assert mean < example.best_return(exact) + 3 * error < exact.log_partition
    assert noisy < mean + 3 * (error + noisy_error)


def test_ppo_improves_on_the_prior_and_stays_below_log_z(example):
    check_between_prior_and_ceiling(example, 25_000, at_least=-6.0)


@pytest.mark.slow
def test_ppo_comes_within_a_third_of_a_nat_of_log_z(example, tmp_path):
    check_between_prior_and_ceiling(example, 300_000, at_least=-3.891 - 0.33)
    example.main(["--steps", "5000", "--figure", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
