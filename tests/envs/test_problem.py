import dataclasses
import re

import pytest
import torch

from actors import rollout
from diffusion.posterior import ControlPosterior
from envs import make_problem
from envs.asked import LikelihoodCalls
from envs.likelihoods import (
    GaussianLikelihood,
    LikelihoodError,
    PoissonLikelihood,
    StudentTLikelihood,
    WithoutGradient,
)
from envs.operators import FourierMagnitudes, Pixels
from evaluation import bounds
from learner import Learner, LearnerConfig


def test_each_trajectory_is_scored_against_its_own_measurement(gaussian_problem, generator):
    measurements = torch.randn(3, 2, generator=generator)
    problem = dataclasses.replace(gaussian_problem, measurements=measurements, exact=())
    value, rows = torch.randn(4, 4, generator=generator), torch.tensor([2, 0, 2, 1])
    got = problem.log_likelihood(value, rows)
    for index, row in enumerate(rows.tolist()):
        one = problem.likelihood.log_prob(value[index][None], measurements[row][None])
        assert float(got[index]) == pytest.approx(float(one), rel=1e-6)
    assert got.shape == (4,)


class _Bare:
    """A density without the shape of what it is one of."""

    def log_prob(self, value, measurement):
        return value.sum(1)


def test_a_likelihood_that_is_none_is_refused_with_what_it_needs(gaussian_problem):
    with pytest.raises(ValueError, match=r"likelihood, _Bare, must have measurement_shape.* log_prob\(x \[N, \*D\]"):
        dataclasses.replace(gaussian_problem, likelihood=_Bare())


def test_a_problem_passes_on_shape_steps_and_gradient(gaussian_problem, generator):
    assert (gaussian_problem.event_shape, gaussian_problem.num_steps) == ((4,), 10)
    value = torch.randn(2, 4, generator=generator)
    measurement = gaussian_problem.measurements.expand(2, 2)
    expected = gaussian_problem.likelihood.gradient(value, measurement)
    assert torch.equal(gaussian_problem.gradient(value, measurement), expected)


def test_a_likelihood_without_a_gradient_leaves_none(gaussian_problem):
    class Scored:
        measurement_shape = (2,)

        def log_prob(self, value, measurement):
            return value.flatten(1).sum(1)

    assert dataclasses.replace(gaussian_problem, likelihood=Scored()).gradient is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measurements": torch.zeros(2)}, r"measurements must be \[M, 2\], got \[2\]"),
        ({"measurements": torch.zeros(1, 3)}, r"measurements must be \[M, 2\], got \[1, 3\]"),
        ({"measurements": torch.zeros(1, 2, 1)}, r"measurements must be \[M, 2\], got \[1, 2, 1\]"),
        (
            {"measurements": torch.tensor([[float("nan"), float("inf")]])},
            "'gaussian-linear': the measurement must be finite, got 2 NaN or infinite values",
        ),
        ({"measurements": torch.zeros(3, 2)}, "3 measurements need as many exact posteriors, got 1"),
    ],
)
def test_a_problem_refuses_measurements_it_cannot_score(gaussian_problem, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(gaussian_problem, **changes)


@pytest.mark.parametrize("name", ["digits-half", "gaussian-linear", "gmm-25-to-9", "gmm-linear"])
def test_every_exact_posterior_gives_evidence_moments_and_samples(name, generator):
    problem = make_problem(name, {"num_steps": 10})
    for exact in problem.exact:
        draws = exact.sample(20_000, generator)
        assert isinstance(exact.log_partition, float)
        assert draws.shape == (20_000, *problem.event_shape)
        error = (draws.mean(0) - exact.mean) / (exact.variance / 20_000).sqrt()
        assert float(error.abs().max()) < 4.5  # of up to 64 normal deviates
        assert draws.var(0).flatten().tolist() == pytest.approx(exact.variance.flatten().tolist(), rel=0.12)


class _Stated:
    """Says that it gives two numbers, and gives what it is asked for."""

    measurement_shape = (2,)

    def __init__(self, give):
        self.give = give

    def __call__(self, value):
        return self.give(value)


@pytest.mark.parametrize(
    "make", [lambda op: GaussianLikelihood(op, 0.1), PoissonLikelihood, lambda op: StudentTLikelihood(op, 1.0)]
)
@pytest.mark.parametrize(
    ("give", "got"),
    [
        (lambda value: value[:, :1], r"shape \(3, 1\)"),  # which would be stretched to y
        (lambda value: value[:1, :2], r"shape \(1, 2\)"),
        (lambda value: value.sum(), r"shape \(\)"),
        (lambda value: value[:, :2].detach().numpy(), "ndarray"),
    ],
)
def test_an_operator_whose_output_does_not_fit_the_measurement_is_named(gaussian_problem, make, give, got):
    problem = dataclasses.replace(gaussian_problem, likelihood=make(_Stated(give)))
    value, rows = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
    message = rf"^the forward operator _Stated must give a tensor of shape \(3, 2\) for 3 x, .* got {got}$"
    for ask in (
        lambda: problem.log_likelihood(value, rows),
        lambda: problem.gradient(value, problem.measurements[rows]),
        lambda: problem.simulate(value),
    ):
        with pytest.raises(LikelihoodError, match=message):
            ask()


@pytest.mark.parametrize("operator", [Pixels(torch.ones(1, 2)), FourierMagnitudes((1, 2, 2), 2)])
def test_x_of_another_size_than_the_operator_takes_is_refused_though_it_could_be_cut(operator):
    likelihood = GaussianLikelihood(operator, 0.1)
    value = torch.ones(3, 1, 4, 4)  # of which the first two pixels, or the corner, could be taken
    message = r"takes x of shape \(1, 2(, 2)?\), as its event_shape says, got \(1, 4, 4\)"
    with pytest.raises(LikelihoodError, match=message):
        likelihood.log_prob(value, torch.zeros(3, *likelihood.measurement_shape))


class _Failing:
    """Gives of everything what does not fit, or fails at it."""

    measurement_shape = (2,)

    def __init__(self, fails):
        self.fails = fails

    def _give(self, value):
        if self.fails:
            raise KeyError("a key\nof mine")
        return value[:, :3]

    def log_prob(self, value, measurement):
        return self._give(value)

    def gradient(self, value, measurement):
        return self._give(value)

    def sample(self, value, generator=None):
        return self._give(value)

    def violation(self, value, measurement):
        return self._give(value)


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("", "one number for each of the 5 x, log p(y | x) [5]"),
        ("the gradient of ", "shape (5, 4) for 5 x"),
        ("a simulation of ", "shape (5, 2) for 5 x"),
        ("the violation of ", "shape (5,) for 5 x"),
    ],
)
def test_a_likelihood_that_fails_or_gives_something_else_is_named_in_one_line(gaussian_problem, fails, what, expected):
    problem = dataclasses.replace(gaussian_problem, likelihood=_Failing(fails))
    value, rows = torch.ones(5, 4), torch.zeros(5, dtype=torch.int64)
    ask = {
        "": lambda: problem.log_likelihood(value, rows),
        "the gradient of ": lambda: problem.gradient(value, problem.measurements[rows]),
        "a simulation of ": lambda: problem.simulate(value),
        "the violation of ": lambda: problem.violation(value, rows),
    }[what]
    with pytest.raises(LikelihoodError) as error:
        ask()
    named = f"{what}the likelihood of problem 'gaussian-linear' (_Failing)"
    if fails:
        start = re.escape(f"{named}, asked for 5 x, raised KeyError: ")
        assert re.fullmatch(start + r".* \(File \".*test_problem.py\", line \d+\)", str(error.value))
        assert isinstance(error.value.__cause__, KeyError)
    else:
        assert str(error.value) == f"{named} must give a tensor of {expected}, got shape (5, 3)"


def test_an_operator_that_autograd_does_not_go_through_says_what_to_do(gaussian_problem):
    staircase = GaussianLikelihood(_Stated(lambda value: value[:, :2].detach().round()), 0.1)
    problem = dataclasses.replace(gaussian_problem, likelihood=staircase)
    with pytest.raises(
        LikelihoodError, match=r"GaussianLikelihood has no gradient, .*envs.likelihoods.WithoutGradient"
    ):
        problem.gradient(torch.ones(1, 4), problem.measurements[:1])


def test_every_x_that_the_likelihood_is_asked_about_is_counted_wherever_the_problem_is_seen_from(gaussian_problem):
    problem = dataclasses.replace(gaussian_problem, calls=LikelihoodCalls())
    value, rows = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    steps = (
        (3, lambda: problem.log_likelihood(value, rows)),
        (5, lambda: problem.at(torch.ones(2, 2)).log_likelihood(value[:2], torch.tensor([0, 1]))),
        (8, lambda: problem.gradient(value, torch.zeros(3, 2))),
        (11, lambda: problem.marginal_gradient(value, torch.zeros(3, 2), torch.ones(3))),
        (14, lambda: dataclasses.replace(problem, time_limit=9.0).simulate(value)),
        (14, lambda: gaussian_problem.log_likelihood(value, rows)),  # which counts its own
    )
    for count, ask in steps:
        ask()
        assert problem.calls.count == count


def test_a_way_to_a_rare_event_is_counted_as_well():
    problem = make_problem("rare-event")
    assert float(problem.violation(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)).min()) > 0
    assert problem.calls.count == 4


def _black_box(problem, noise_std=0.8):
    """`problem` without its gradient, and a surrogate of another noise."""
    surrogate = GaussianLikelihood(problem.likelihood.operator, noise_std)
    return dataclasses.replace(problem, likelihood=WithoutGradient(problem.likelihood), surrogate=surrogate)


def test_guides_go_by_the_surrogate_and_weights_by_the_likelihood(gaussian_problem, generator):
    problem = dataclasses.replace(_black_box(gaussian_problem), calls=LikelihoodCalls(), guidance="shift")
    value, rows = torch.randn(3, 4, generator=generator), torch.zeros(3, dtype=torch.int64)
    measurement, surrogate = problem.measurements[rows], problem.surrogate
    assert torch.equal(problem.gradient(value, measurement), surrogate.gradient(value, measurement))
    variance = torch.full((3,), 0.3)
    expected = surrogate.marginal_gradient(value, measurement, variance)
    assert torch.equal(problem.marginal_gradient(value, measurement, variance), expected)
    bent = dataclasses.replace(gaussian_problem, likelihood=surrogate, guidance="shift", calls=LikelihoodCalls())
    step = torch.tensor([2, 5, 8])
    assert torch.equal(problem.guide(value, step, measurement)[1], bent.guide(value, step, measurement)[1])
    assert problem.calls.count == 0 and not problem.differentiable and problem.shiftable
    assert torch.equal(problem.log_likelihood(value, rows), gaussian_problem.log_likelihood(value, rows))
    assert problem.calls.count == 3


def test_a_surrogate_is_refused_where_there_is_a_gradient_or_it_does_not_fit(gaussian_problem):
    likelihood = gaussian_problem.likelihood
    with pytest.raises(ValueError, match="for a likelihood without a gradient, but GaussianLikelihood has one"):
        dataclasses.replace(gaussian_problem, surrogate=likelihood)
    others = (
        (WithoutGradient(likelihood), "must be a likelihood with a gradient, got WithoutGradient"),
        ("text", "must be a likelihood with a gradient, got str"),
        (GaussianLikelihood(Pixels(torch.ones(4)), 1.0), r"of the same y, of shape \(2,\), got one of \(4,\)"),
    )
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(gaussian_problem, likelihood=WithoutGradient(likelihood), surrogate=other)


def test_a_surrogate_that_fails_is_named(gaussian_problem):
    problem = _black_box(gaussian_problem)
    problem.surrogate.gradient = lambda value, measurement: value[:, :1]
    named = r"gradient of the surrogate of problem 'gaussian-linear' \(GaussianLikelihood\)"
    with pytest.raises(LikelihoodError, match=named + r" must give a tensor of shape \(1, 4\)"):
        problem.gradient(torch.ones(1, 4), problem.measurements[:1])


@pytest.mark.parametrize("objective", ["path_kl", "adjoint_matching"])
def test_an_objective_of_the_likelihoods_own_gradient_takes_no_surrogate(gaussian_problem, objective):
    problem = _black_box(gaussian_problem)
    posterior = ControlPosterior(problem.prior, (2,), hidden=8)
    with pytest.raises(ValueError, match="needs the gradient of the likelihood, which WithoutGradient does not have"):
        Learner(problem, posterior, LearnerConfig(objective=objective))


def test_the_evidence_by_a_guide_that_goes_by_a_surrogate_is_exact(gaussian_problem, generator):
    problem = dataclasses.replace(_black_box(gaussian_problem), guidance="shift")
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, shift=problem.guide)
    with torch.no_grad():
        posterior.gain[1] = 1.0
    rows = torch.zeros(4_000, dtype=torch.int64)
    made = rollout(problem, posterior.control, rows, generator=generator)
    log_weight = made.log_weight
    exact = gaussian_problem.exact[0].log_partition
    assert abs(bounds.iw_log_partition(log_weight) - exact) < 4 * bounds.iw_standard_error(log_weight)
    assert bounds.effective_sample_size(log_weight) > 0.05
    assert bounds.elbo(log_weight) > bounds.elbo(rollout(problem, None, rows, generator=generator).log_weight) + 1
