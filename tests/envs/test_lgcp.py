"""The log-Gaussian Cox process: counts are Poisson, the field is the published one, points are counted by cell."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from actors.path_search import PathSearch
from envs import make_problem

SMALL = {"grid": 2, "num_steps": 20}


def test_the_likelihood_is_that_of_poisson_counts(generator):
    problem = make_problem("lgcp", {"grid": 5})
    value = 4 + torch.randn(7, 25, generator=generator)
    counts = problem.likelihood.sample(value, generator)
    expected = stats.poisson(np.exp(value.double().numpy()) / 25).logpmf(counts.numpy()).sum(1)
    assert problem.likelihood.log_prob(value, counts).numpy() == pytest.approx(expected, rel=1e-5)
    leaf = value.double().requires_grad_(True)
    terms = counts * leaf - leaf.exp() / 25
    (gradient,) = torch.autograd.grad(terms.sum(), leaf)
    assert problem.likelihood.gradient(value, counts).numpy() == pytest.approx(gradient.numpy(), rel=1e-4, abs=1e-4)


def test_counts_have_the_mean_of_the_intensity(generator):
    likelihood = make_problem("lgcp", SMALL).likelihood
    value = torch.tensor([[3.0, 4.0, 5.0, 2.0]]).expand(20_000, 4)
    mean = value[0].exp() / 4
    error = (likelihood.sample(value, generator).mean(0) - mean) / (mean / 20_000).sqrt()
    assert float(error.abs().max()) < 4


def test_the_field_is_the_published_one():
    prior = make_problem("lgcp", {"grid": 4}).prior.denoiser
    covariance = (prior.eigenvectors * prior.eigenvalues) @ prior.eigenvectors.T
    assert covariance.diagonal().numpy() == pytest.approx(np.full(16, 1.91))
    # Cells (0, 0) and (1, 1) are sqrt(2) apart, in units of 4 / 33.
    assert float(covariance[0, 5]) == pytest.approx(1.91 * math.exp(-math.sqrt(2) * 33 / 4))
    assert float(prior.mean[0]) == pytest.approx(math.log(126) - 0.955)


def test_points_are_simulated_alike_on_every_processor_and_126_are_expected():
    options = {"grid": 3, "num_steps": 2}
    counts = make_problem("lgcp", {**options, "seed": 1}).measurements[0]
    assert counts.tolist() == [13, 5, 11, 12, 5, 3, 0, 9, 2]
    sizes = [float(make_problem("lgcp", {**options, "seed": seed}).measurements.sum()) for seed in range(200)]
    assert np.mean(sizes) == pytest.approx(126, abs=4 * np.std(sizes) / math.sqrt(200))


def test_the_tempered_evidence_is_that_of_a_million_prior_draws(generator):
    problem = make_problem("lgcp", SMALL)
    draws = problem.prior.denoiser.sample(1_000_000, generator)
    log_likelihood = problem.likelihood.log_prob(draws, problem.measurements).double()
    exact = float(log_likelihood.logsumexp(0)) - math.log(1_000_000)
    search = PathSearch(problem, 0, 2_000, generator=torch.Generator().manual_seed(0))
    while search.beta < 1:
        search.temper()
        search.settle()
    assert search.log_partition == pytest.approx(exact, abs=0.2)


def test_points_are_counted_by_cell_and_edges_belong_to_the_last(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("0.1,0.1\n0.1,0.9\n0.6,0.4\n1.0,1.0\n0.55,0.2\n")
    problem = make_problem("lgcp", {**SMALL, "points": str(path)})
    assert problem.measurements.tolist() == [[1, 1, 2, 1]] and problem.truth is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1,0.2,0.3\n", r"two columns within \[0, 1\], got shape \(1, 3\)"),
        ("0.1,1.2\n", r"two columns within \[0, 1\]"),
        ("x,y\n0.1,0.2\n", "a CSV of numbers without a header"),
    ],
)
def test_a_file_that_is_not_of_points_is_refused(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        make_problem("lgcp", {**SMALL, "points": str(path)})


def test_a_missing_file_is_named_with_where_its_data_come_from():
    with pytest.raises(ValueError, match=r"there is no file nowhere.csv.*finpines of R's spatstat"):
        make_problem("lgcp", {**SMALL, "points": "nowhere.csv"})
    with pytest.raises(ValueError, match="grid >= 2, got 1"):
        make_problem("lgcp", {"grid": 1})
