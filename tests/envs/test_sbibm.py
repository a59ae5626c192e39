"""The benchmark's tasks: the posteriors are those of its published reference draws, and exact ones are exact."""

import bz2
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import make_problem
from envs.exact.box import BoxPosterior

EXACT = ("gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture")
TASKS = (*EXACT, "slcp", "bernoulli_glm")
DATA = Path(os.environ.get("RTB_DATA", "nowhere"), "sbibm_reference")
published = pytest.mark.skipif(not DATA.is_dir(), reason="RTB_DATA has no sbibm_reference")


def _problem(task, observation=0):
    return make_problem(f"sbibm-{task.replace('_', '-')}", {"observation": observation, "num_steps": 10})


def _reference(task, observation):
    path = DATA / task / f"num_observation_{observation}" / "reference_posterior_samples.csv.bz2"
    with bz2.open(path, "rt") as file:
        return torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1))


@published
@pytest.mark.parametrize("task", EXACT)
@pytest.mark.parametrize("observation", [1, 7])
def test_the_exact_posterior_has_the_moments_of_the_published_draws(task, observation):
    exact, reference = _problem(task, observation).exact[0], _reference(task, observation)
    error = reference.std(0) / len(reference) ** 0.5
    assert float(((reference.mean(0) - exact.mean) / error).abs().max()) < 4.5
    square = (reference - reference.mean(0)).square()
    error = square.std(0) / len(reference) ** 0.5
    assert float(((square.mean(0) - exact.variance) / error).abs().max()) < 4.5


@published
@pytest.mark.parametrize(("task", "bound"), [("slcp", 3.0), ("bernoulli_glm", None), ("gaussian_mixture", 10.0)])
@pytest.mark.parametrize("observation", [1, 7, 8])
def test_the_published_draws_have_the_score_of_prior_and_likelihood(task, bound, observation):
    """Stein's identity: under p(x | y) the mean of div f + f . grad log p(x, y) is zero, for f zero at the walls."""
    problem, value = _problem(task, observation), _reference(task, observation)
    measurement = problem.measurements.double().expand(len(value), -1)
    score = problem.likelihood.gradient(value, measurement)
    if bound is None:
        precision = torch.linalg.inv(
            problem.prior.denoiser.eigenvectors
            * problem.prior.denoiser.eigenvalues
            @ problem.prior.denoiser.eigenvectors.T
        )
        terms = score - value @ precision
    else:
        inside = bound**2 - value.square()
        crossed = value[:, :, None] * (inside * score)[:, None] - 2 * value[:, :, None] * value[:, None]
        others = ~torch.eye(value.shape[1], dtype=torch.bool)  # f along j, and x_i f: the latter sees correlations
        terms = torch.cat([-2 * value + inside * score, crossed[:, others]], 1)
    # The reference draws of a Markov chain are not independent, so their error is taken from blocks.
    blocks = terms.reshape(100, -1, terms.shape[1]).mean(1)
    error = blocks.std(0) / 10
    assert float((blocks.mean(0) / error).abs().max()) < 4.5
    assert float(error.max()) < 0.15 * float(terms.std(0).max())


@pytest.mark.parametrize("task", TASKS)
def test_a_task_without_data_is_drawn_from_itself(task):
    problem = _problem(task)
    value = problem.truth.double()
    assert torch.isfinite(problem.log_likelihood(problem.truth, torch.zeros(1, dtype=torch.int64))).all()
    assert problem.measurements.shape[1:] == tuple(problem.likelihood.measurement_shape)
    drawn = problem.simulate(value.expand(3, -1), torch.Generator().manual_seed(0))
    assert drawn.shape == (3, *problem.likelihood.measurement_shape) and (drawn[0] != drawn[1]).any()


def test_the_evidence_of_a_box_is_that_of_a_grid():
    problem = _problem("gaussian_mixture")
    grid = torch.arange(2000, dtype=torch.float64) * 0.01 - 9.995
    value = torch.cartesian_prod(grid, grid)
    log_prob = problem.likelihood.log_prob(value, problem.measurements.double().expand(len(value), -1))
    expected = float(log_prob.logsumexp(0)) + 2 * np.log(0.01) - 2 * np.log(20)
    assert problem.exact[0].log_partition == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("centre", [0.2, 1.4, -9.0])
def test_draws_of_a_box_have_its_moments_also_where_the_measurement_lies_outside(centre):
    low, high = torch.full((2,), -1.0), torch.full((2,), 1.0)
    measurement = torch.tensor([centre, 0.5])
    exact = BoxPosterior(low, high, measurement, torch.tensor([1.0, 0.3]), torch.tensor([0.4, 0.6]))
    drawn = exact.sample(200_000, torch.Generator().manual_seed(0))
    assert float(drawn.abs().max()) <= 1
    assert float(((drawn.mean(0) - exact.mean) / (drawn.std(0) / 200_000**0.5)).abs().max()) < 4.5
    square = (drawn - drawn.mean(0)).square()
    assert float(((square.mean(0) - exact.variance) / (square.std(0) / 200_000**0.5)).abs().max()) < 4.5


def test_missing_data_is_named_with_its_source_and_an_observation_that_is_none_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RTB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs sbibm_reference/slcp/num_observation_3/.*put it there from https://"):
        _problem("slcp", 3)
    monkeypatch.delenv("RTB_DATA")
    with pytest.raises(ValueError, match=r"set RTB_DATA to the folder that has it; it comes from https://"):
        _problem("slcp", 3)
    with pytest.raises(ValueError, match=r"observation must be 1..10 for a published one, or 0, got 11"):
        _problem("slcp", 11)
