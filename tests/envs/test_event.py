"""Rare events: their probability by integrals in the plane, and the way there by levels."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import dblquad

from actors.path_search import PathSearch
from actors.path_searcher import PathSearchConfig, PathSearcher
from diffusion.posterior import ControlPosterior
from envs import make_problem
from envs.exact.event import BranchPosterior, branch_edge
from envs.likelihoods import EventLikelihood, RelaxedLikelihood


def limit_state(x1, x2, k=7.0):
    """As published (Echard et al. 2011): it fails below zero."""
    return np.minimum.reduce(
        [
            3 + 0.1 * (x1 - x2) ** 2 - (x1 + x2) / math.sqrt(2),
            3 + 0.1 * (x1 - x2) ** 2 + (x1 + x2) / math.sqrt(2),
            (x1 - x2) + k / math.sqrt(2),
            (x2 - x1) + k / math.sqrt(2),
        ]
    )


def density(u, v):
    return math.exp(-0.5 * (u * u + v * v)) / (2 * math.pi)


def test_the_event_at_level_three_is_the_published_limit_state(generator):
    value = 3 * torch.randn(10_000, 2, generator=generator, dtype=torch.float64)
    likelihood = make_problem("rare-event", {"num_steps": 2}).likelihood
    got = likelihood.log_prob(value, torch.ones(10_000, 1)) == 0
    expected = limit_state(*value.T.numpy()) <= 0
    assert 0.1 < expected.mean() < 0.9
    assert (got.numpy() == expected).all()


@pytest.mark.parametrize("level", [2.0, 3.0, 5.0])
def test_the_probability_of_the_four_branches_is_its_double_integral(level):
    edge = branch_edge(level)
    first, _ = dblquad(density, 0, edge, lambda v: level + 0.2 * v * v, lambda v: 14, epsabs=0, epsrel=1e-9)
    last, _ = dblquad(density, edge, 14, 0, 14, epsabs=0, epsrel=1e-9)
    got = BranchPosterior(level)
    assert math.exp(got.log_partition) == pytest.approx(4 * (first + last), rel=1e-7)
    assert got.branches.tolist() == pytest.approx([f / (first + last) / 2 for f in (first, first, last, last)])


def test_the_published_probability_is_within_the_error_of_a_million_draws():
    exact = math.exp(BranchPosterior(3.0).log_partition)
    assert exact == pytest.approx(2.233e-3, abs=2 * math.sqrt(exact / 1e6))


def test_a_half_space_has_the_moments_of_a_truncated_normal():
    exact = make_problem("rare-event", {"limit_state": "linear", "level": 4.0, "dim": 3, "num_steps": 2}).exact[0]
    along = stats.truncnorm(4.0, math.inf)
    assert math.exp(exact.log_partition) == pytest.approx(stats.norm.sf(4.0), rel=1e-12)
    assert exact.mean.tolist() == pytest.approx([along.mean() / math.sqrt(3)] * 3, rel=1e-9)
    assert exact.variance.tolist() == pytest.approx([1 + (along.var() - 1) / 3] * 3, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"level": 5.0}, {"limit_state": "linear", "level": 4.0, "dim": 5}])
def test_exact_draws_are_in_the_event_and_have_its_moments(options, generator):
    problem = make_problem("rare-event", {**options, "num_steps": 2})
    exact, count = problem.exact[0], 100_000
    drawn = exact.sample(count, generator)
    assert float((problem.likelihood.margin(drawn) < -1e-9).double().mean()) == 0
    error = (exact.variance / count).sqrt()
    assert bool(((drawn.mean(0) - exact.mean).abs() < 4 * error).all())
    spread = (drawn - exact.mean).square()
    assert bool(((spread.mean(0) - exact.variance).abs() < 4 * spread.std(0) / math.sqrt(count)).all())


def test_draws_of_the_four_branches_are_those_of_rejection(generator):
    problem = make_problem("rare-event", {"level": 1.0, "num_steps": 2})
    prior = torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    expected = prior[problem.likelihood.margin(prior) >= 0]
    drawn = problem.exact[0].sample(50_000, generator)
    for project in ((1.0, 0.0), (1.0, 1.0), (1.0, -1.0), (0.3, 0.8)):
        both = [(value @ torch.tensor(project, dtype=torch.float64)).numpy() for value in (expected, drawn)]
        assert stats.ks_2samp(*both).pvalue > 1e-3
    shares = problem.classes.probabilities(expected).mean(0)
    assert shares.tolist() == pytest.approx(problem.class_probabilities(0).tolist(), abs=4 * 0.5 / math.sqrt(20_000))


def test_the_violation_is_zero_where_the_event_agrees_with_y_and_the_distance_elsewhere(generator):
    likelihood = EventLikelihood(lambda value: value[:, 0] - 1.0)
    value = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    for said, expected in ((0.0, (value[:, 0] - 1).clamp_min(0)), (1.0, (1 - value[:, 0]).clamp_min(0))):
        y = torch.full((50, 1), said)
        violation = likelihood.violation(value, y)
        assert torch.equal(violation, expected) and bool(violation.any())
        assert torch.equal(likelihood.log_prob(value, y) == 0, violation == 0)
    assert isinstance(likelihood, RelaxedLikelihood)


def test_levels_lead_to_an_event_that_no_path_of_the_prior_has_reached():
    problem = make_problem("rare-event", {"limit_state": "linear", "level": 4.3, "num_steps": 20})
    estimates, means = [], []
    for seed in range(3):
        search = PathSearch(problem, 0, 1_000, generator=torch.Generator().manual_seed(seed))
        assert not bool(torch.isfinite(search.log_likelihood).any())
        last = 0.0
        while search.beta < 1:
            assert search.temper() > last
            last = search.beta
            search.settle()
        assert bool((search.log_likelihood == 0).all())
        estimates.append(search.log_partition)
        means.append(float(search.samples.mean()))
    exact = problem.exact[0]  # of probability 8.5e-6
    assert np.mean(estimates) == pytest.approx(exact.log_partition, abs=0.5)
    assert np.mean(means) == pytest.approx(float(exact.mean.mean()), abs=0.05)


def test_below_beta_one_the_weight_of_a_path_is_by_its_distance_and_the_hand_over_is_exact():
    problem = make_problem("rare-event", {"limit_state": "linear", "level": 1.0, "num_steps": 10})
    search = PathSearch(problem, 0, 20_000, generator=torch.Generator().manual_seed(0))
    search.temper(0.9)
    assert 0 < search.beta < 1
    rate = search.beta / (1 - search.beta)
    tilt = -rate * (1.0 - search.samples.sum(1) / math.sqrt(2)).clamp_min(0)
    paths = search.paths()
    assert paths.log_behaviour_ratio.numpy() == pytest.approx(tilt.numpy() - search.log_partition, rel=1e-4, abs=1e-4)
    weight = (paths.log_likelihood.double() - paths.log_behaviour_ratio).exp()
    assert float(weight.mean().log()) == pytest.approx(problem.exact[0].log_partition, abs=0.05)


def test_an_actor_goes_by_levels_until_paths_are_possible():
    problem = make_problem("rare-event", {"level": 4.0, "num_steps": 10})
    posterior = ControlPosterior(problem.prior, (1,), problem.gradient, hidden=8, depth=1)
    searcher, generator = PathSearcher(PathSearchConfig(population=256)), torch.Generator().manual_seed(0)
    made = searcher.explore(problem, posterior, torch.zeros(64, dtype=torch.long), 0.0, generator)
    assert bool(torch.isfinite(made.log_likelihood).any()) and made.log_likelihood.shape == (64,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_state": "round"}, "limit_state must be linear or four-branch, got 'round'"),
        ({"level": 9.0}, r"level must be within 0..8 standard deviations, got 9.0"),
        ({"dim": 3}, "the four branches are in the plane: dim must be 2, got 3"),
        ({"limit_state": "linear", "dim": 0}, "dim must be at least 1, got 0"),
    ],
)
def test_events_that_there_are_not_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("rare-event", options)
