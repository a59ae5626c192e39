"""The best Gaussian for each component of a posterior, and the guide that is made of it."""

import copy
import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from actors.rollout import rollout
from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.posterior import PosteriorConfig, make_posterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem, make_problem, variational
from envs.asked import Asked
from envs.exact.mixture import condition_mixture
from envs.likelihoods import GaussianLikelihood, LikelihoodError, PoissonLikelihood, WithoutGradient
from envs.mixture_modes import Components
from envs.operators import Lognormal, Matrix, Pixels
from envs.variational import variational_mixture
from tests.opaque import Opaque

MATRIX = torch.tensor([[1.0, 0.4, 0.0], [0.2, 0.9, 0.3]], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)
ASKED = Asked("the likelihood", None, None)


def _moments(mixture):
    """Means [C, D] and covariances [C, D, D]."""
    basis = mixture.eigenvectors.double()
    means = torch.einsum("ce,cde->cd", mixture.means.double(), basis)
    return means, basis @ torch.diag_embed(mixture.eigenvalues.double()) @ basis.mT


def test_of_a_linear_measurement_it_is_the_exact_posterior_and_its_evidence(generator, caplog):
    means = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    prior = MixtureDenoiser(means, COVARIANCE, torch.randn(5, generator=generator, dtype=torch.float64))
    noise, seen = torch.tensor([0.4, 0.7], dtype=torch.float64), torch.tensor([0.5, -0.3])
    with caplog.at_level(logging.INFO, "envs"):
        found = variational_mixture(prior, GaussianLikelihood(Matrix(MATRIX), noise), seen, ASKED)
    exact = condition_mixture(means, COVARIANCE, prior.log_weights, MATRIX, noise, seen, (3,))
    order = exact.log_weights.argsort(descending=True)
    centres, covariances = _moments(found)
    by = found.log_weights.argsort(descending=True)
    assert found.log_weights[by].tolist() == pytest.approx(exact.log_weights[order].tolist(), abs=1e-4)
    assert centres[by].numpy() == pytest.approx(exact.means[order].numpy(), abs=1e-5)
    assert covariances.numpy() == pytest.approx(exact.covariance.expand(5, 3, 3).numpy(), abs=1e-6)
    assert "5 of the prior's 5 components matter to y; by" in caplog.text
    assert f"log p(y) is {exact.log_partition:.1f} or more" in caplog.text


def test_of_one_that_bends_it_is_the_gaussian_of_the_largest_bound_by_quadrature(monkeypatch):
    """Counts of exp(x), few and so not Gaussian: mean, deviation and bound, by an optimiser on a grid."""
    monkeypatch.setattr(variational, "GAUSSIAN_ENOUGH", 0.0)  # Laplace's approximation would do, but for 0.07 nats
    prior, seen = GaussianDenoiser(torch.tensor([0.5], dtype=torch.float64), 4.0), 1.0
    likelihood = PoissonLikelihood(Lognormal((1,), 0.5), 1.0)
    found = variational_mixture(prior, likelihood, torch.tensor([seen]), ASKED)
    nodes, share = np.polynomial.hermite_e.hermegauss(80)
    weights = torch.from_numpy(share / share.sum())

    def bound(parameters):
        mean, std = parameters[0], math.exp(parameters[1])
        x = mean + std * torch.from_numpy(nodes)[:, None]
        density = likelihood.log_prob(x, torch.full((80, 1), seen)) + prior.log_prob(x)
        return float(weights @ density) + math.log(std) + 0.5 * math.log(2 * math.pi * math.e)

    best = minimize(lambda parameters: -bound(parameters), [0.0, 0.0], method="Nelder-Mead", tol=1e-9)
    centres, covariances = _moments(found)
    mean, std = float(centres), float(covariances) ** 0.5
    # Fisher's information stands for the Hessian, and draws for expectations: the bound is what has to be the best.
    assert bound([mean, math.log(std)]) == pytest.approx(-best.fun, abs=0.02)
    assert (mean, std) == pytest.approx((best.x[0], math.exp(best.x[1])), abs=0.15)
    mode = minimize(
        lambda x: (
            -float(
                likelihood.log_prob(torch.tensor([[x[0]]]).double(), torch.tensor([[seen]]))
                + prior.log_prob(torch.tensor([[x[0]]]))
            )
        ),
        [0.0],
    ).x[0]
    rate = math.exp(mode - 0.125)
    assert bound([mode, -0.5 * math.log(rate + 0.25)]) < -best.fun - 0.05  # Laplace's is worse


def test_where_it_ends_the_gradient_is_zero_and_the_precision_the_information_on_average(monkeypatch):
    """The two conditions of the largest bound, by quadrature in the plane, for counts of two correlated elements."""
    for name, value in {"GAUSSIAN_ENOUGH": 0.0, "SMALL": 0.0, "DRAWS": 1_000, "TRIALS": 1_000}.items():
        monkeypatch.setattr(variational, name, value)
    mean, covariance = torch.tensor([0.5, -0.3]).double(), torch.tensor([[2.0, 0.8], [0.8, 1.0]]).double()
    seen, std = torch.tensor([1.0, 4.0]), 0.5
    likelihood = PoissonLikelihood(Lognormal((2,), std), 2.0)
    found = variational_mixture(GaussianDenoiser(mean, covariance), likelihood, seen, ASKED)
    (centre,), (spread,) = _moments(found)
    nodes, share = np.polynomial.hermite_e.hermegauss(40)
    point = torch.cartesian_prod(*[torch.from_numpy(nodes)] * 2)
    weight = torch.from_numpy(np.outer(share, share).ravel() / share.sum() ** 2)
    x = centre + point @ torch.linalg.cholesky(spread).T
    rate = 2 * (x - std**2 / 2).exp()
    uphill = weight @ (seen.double() - rate - (x - mean) @ torch.linalg.inv(covariance))
    assert (torch.linalg.cholesky(spread).T @ uphill).tolist() == pytest.approx([0.0, 0.0], abs=0.05)
    expected = torch.linalg.inv(torch.linalg.inv(covariance) + torch.diag(weight @ rate))
    assert spread.numpy() == pytest.approx(expected.numpy(), rel=0.05)


def test_components_have_the_weight_of_their_bound_not_of_their_mode(monkeypatch):
    """Nothing was counted: of a wide component behind exp(x) Laplace's evidence is off, by quadrature."""
    monkeypatch.setattr(variational, "GAUSSIAN_ENOUGH", 0.0)
    prior = MixtureDenoiser(torch.tensor([[0.0], [3.0]], dtype=torch.float64), 4.0)
    likelihood = PoissonLikelihood(Lognormal((1,), 0.5), 1.0)
    found = variational_mixture(prior, likelihood, torch.zeros(1), ASKED)
    grid = torch.linspace(-20, 15, 70_001, dtype=torch.float64)
    density = likelihood.log_prob(grid[:, None], torch.zeros(len(grid), 1))
    exact = torch.stack([(density - 0.125 * (grid - centre) ** 2).logsumexp(0) for centre in (0.0, 3.0)])
    by = _moments(found)[0][:, 0].argsort(descending=True)  # of the second component, the larger
    difference = float(found.log_weights[by[1]] - found.log_weights[by[0]])
    assert difference == pytest.approx(float(exact[0] - exact[1]), abs=0.1)


def test_components_are_left_out_that_are_twelve_nats_behind():
    """Evidences of a linear measurement, 11 and 13 nats below the first: far away in what y sees."""
    away = [0.0, (2 * 1.25 * 11) ** 0.5, (2 * 1.25 * 13) ** 0.5]
    means = torch.tensor([[place] for place in away], dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(torch.eye(1, dtype=torch.float64)), 0.5)
    found = variational_mixture(MixtureDenoiser(means, 1.0), likelihood, torch.zeros(1), ASKED)
    assert len(found.log_weights) == 2
    assert float(found.log_weights.max() - found.log_weights.min()) == pytest.approx(11, abs=1e-3)


def test_one_step_is_the_formula(monkeypatch):
    """Of a linear measurement, from a wrong start, written out."""
    monkeypatch.setattr(variational, "STEPS", 1)
    monkeypatch.setattr(variational, "SHARES", (0.25,))
    prior, seen = MixtureDenoiser(torch.ones(1, 3), COVARIANCE), torch.tensor([0.5, -0.3])
    components = Components(prior, GaussianLikelihood(Matrix(MATRIX), 0.5), seen, ASKED)
    start = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    wrong = torch.diag(torch.tensor([40.0, 30.0, 20.0], dtype=torch.float64))
    mean, precision, _ = variational._best_gaussian(components, torch.tensor(0), start, wrong)
    across = MATRIX @ components.root
    expected = 0.75 * wrong + 0.25 * (torch.eye(3) + 4 * across.T @ across)
    uphill = 4 * across.T @ (seen.double() - MATRIX @ (1 + components.root @ start)) - start
    assert precision.numpy() == pytest.approx(expected.numpy(), abs=1e-9)
    assert mean.numpy() == pytest.approx((start + 0.25 * torch.linalg.solve(expected, uphill)).numpy(), abs=1e-9)


def test_where_the_likelihood_is_zero_the_bound_is_that_of_the_gaussian_cut_there(generator):
    """y = x + noise for x > 0, and never for others: the evidence is a Gaussian integral over half a line."""

    class Cut(GaussianLikelihood):
        def log_prob(self, value, measurement):
            return torch.where(value[:, 0] > 0, super().log_prob(value, measurement), -torch.inf)

    prior = GaussianDenoiser(torch.zeros(1), 1.0)
    likelihood = Cut(Matrix(torch.eye(1, dtype=torch.float64)), 1.0)
    components = Components(prior, likelihood, torch.tensor([0.5]), ASKED)
    row, mode = components.modes()
    _, _, bound = variational._best_gaussian(components, row[0], mode[0], components.precision(mode[:, None]))
    law = torch.distributions.Normal(0.0, 1.0)
    whole = float(torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.5)))
    exact = whole + math.log(float(law.cdf(torch.tensor(0.25 / 0.5**0.5))))  # N(0.25, 0.5) above zero
    assert exact - 0.1 < float(bound) < exact + 0.1


def test_a_likelihood_that_is_zero_everywhere_is_refused():
    class Nowhere:
        measurement_shape = (1,)

        def log_prob(self, value, measurement):
            return torch.full((len(value),), -torch.inf)

        def gradient(self, value, measurement):
            return torch.zeros_like(value)

        def standardised(self, value, measurement):
            return measurement - value

    with pytest.raises(LikelihoodError, match="the likelihood is zero, or no number, wherever modes of the"):
        variational_mixture(GaussianDenoiser(torch.zeros(1), 1.0), Nowhere(), torch.zeros(1), ASKED)


def _problem(measurements):
    means = torch.tensor([[2.0, 2.0, 0.0], [-2.0, -2.0, 0.0]], dtype=torch.float64)
    prior = MixtureDenoiser(means, 0.05)
    levels = make_schedule("vp-cosine-zero-snr", 6)
    return InverseProblem(
        name="test",
        prior=Prior(prior, levels, (3,), prior.denoising_variance),
        likelihood=GaussianLikelihood(Matrix(MATRIX), 0.5),
        measurements=measurements,
        guidance="variational",
    )


def test_the_guide_moves_x_to_where_each_measurement_says(generator):
    """The exact E[x | s, y], by the law of a mixture, of two measurements that speak for another component each."""
    problem = _problem(torch.tensor([[0.5, 2.0], [-0.5, 2.0]]))  # of which one element is the same
    step, row = torch.arange(6), torch.tensor([0, 1, 1, 0, 0, 1])
    state = torch.randn(6, 3, generator=generator)
    denoised, shift = problem.guide(state, step, problem.measurements[row])
    assert torch.equal(denoised, problem.prior.denoised(state, step))
    prior = problem.prior.denoiser
    for index in range(6):
        seen = problem.measurements[row[index]].double()
        exact = condition_mixture(prior.means, prior.covariance, prior.log_weights, MATRIX, 0.5, seen, (3,))
        law = MixtureDenoiser(exact.means, exact.covariance, exact.log_weights)
        at = problem.prior.alpha[index : index + 1], problem.prior.sigma[index : index + 1]
        expected = law(state[index : index + 1].double(), *at)[0]
        assert (denoised + shift)[index].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_it_is_worked_out_once_for_each_measurement_likelihood_and_prior(generator):
    problem = _problem(torch.tensor([[2.5, 2.0], [-2.5, -2.0]]))
    state, step = torch.randn(2, 3, generator=generator), torch.tensor([2, 3])
    assert problem.calls.count == 0
    first = problem.guide(state, step, problem.measurements)[1]
    asked = problem.calls.count
    assert asked > 0
    again = dataclasses.replace(problem)
    assert torch.equal(again.guide(state, step, problem.measurements)[1], first) and problem.calls.count == asked
    other = dataclasses.replace(problem, likelihood=GaussianLikelihood(Matrix(MATRIX), 5.0))
    assert not torch.equal(other.guide(state, step, problem.measurements)[1], first) and problem.calls.count > asked
    wider = MixtureDenoiser(problem.prior.denoiser.means, 0.5)
    prior = Prior(wider, problem.prior.schedule, (3,), wider.denoising_variance)
    moved = dataclasses.replace(problem, prior=prior).guide(state, step, problem.measurements)
    fresh = dataclasses.replace(_problem(problem.measurements), prior=prior).guide(state, step, problem.measurements)
    assert torch.equal(moved[1], fresh[1])


def test_it_goes_by_the_surrogate_and_asks_the_likelihood_nothing(generator):
    problem = _problem(torch.tensor([[2.5, 2.0]]))
    hidden = dataclasses.replace(
        problem,
        likelihood=WithoutGradient(GaussianLikelihood(Matrix(MATRIX), 0.1)),
        surrogate=problem.likelihood,
    )
    state, step = torch.randn(2, 3, generator=generator), torch.tensor([2, 3])
    seen = problem.measurements.expand(2, 2)
    assert torch.equal(hidden.guide(state, step, seen)[1], problem.guide(state, step, seen)[1])
    assert hidden.calls.count == 0


def test_x_keeps_the_shape_that_the_prior_gives_it():
    prior = MixtureDenoiser(torch.zeros(1, 4), 1.0, event_shape=(1, 2, 2))
    likelihood = GaussianLikelihood(Pixels(torch.ones(1, 2, 2)), 0.5)
    found = variational_mixture(prior, likelihood, torch.ones(likelihood.measurement_shape), ASKED)
    state = torch.zeros(3, 1, 2, 2)
    assert found(state, torch.zeros(3), torch.ones(3)).flatten().tolist() == pytest.approx([0.8] * 12)


def test_another_measurement_is_refused(generator):
    problem = _problem(torch.tensor([[2.5, 2.0]]))
    with pytest.raises(ValueError, match=r"for the problem's own 1 measurements, and 2 of 2 states are of others"):
        problem.guide(torch.zeros(2, 3), torch.tensor([2, 3]), torch.zeros(2, 2))


def _opaque(problem):
    prior = copy.deepcopy(problem.prior)
    prior.denoiser = Opaque(prior.denoiser)
    return dataclasses.replace(problem, prior=prior)


def _untrained(problem, count, generator):
    """Weights [count] of paths that go by the guide alone."""
    config = PosteriorConfig(hidden=8, likelihood_gradient="variational", initial_gain=1.0)
    shape = problem.measurements.shape[1:]
    posterior = make_posterior(config, problem.prior, shape, problem.gradient, None, problem.guide)
    rows = torch.zeros(count, dtype=torch.int64)
    return rollout(problem, posterior.control, rows, generator=generator, guided=True).log_weight


def test_under_a_prior_that_is_no_mixture_one_of_its_draws_guides(generator, caplog):
    """The bound is within two nats of that under the mixture that the prior is, of which nothing is told here."""
    known = make_problem("gmm-linear", {"dim": 8, "num_steps": 60})
    hidden = dataclasses.replace(_opaque(known), guidance="variational")
    with caplog.at_level(logging.INFO):
        weights = _untrained(hidden, 2_000, generator)
    assert "no mixture of Gaussians: for what guides the paths the kernel density of its draws stands in" in caplog.text
    best = _untrained(dataclasses.replace(known, guidance="variational"), 2_000, generator)
    assert float(best.mean()) - 2.0 < float(weights.mean()) < known.exact[0].log_partition
    assert float(weights.logsumexp(0)) - math.log(2_000) == pytest.approx(known.exact[0].log_partition, abs=0.15)
    first = hidden.guide(torch.zeros(1, 8), torch.tensor([5]), hidden.measurements[:1])[1]
    again = dataclasses.replace(_opaque(known), guidance="variational")
    assert torch.equal(again.guide(torch.zeros(1, 8), torch.tensor([5]), again.measurements[:1])[1], first)


def test_many_elements_of_a_prior_that_is_no_mixture_are_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(variational, "MANY", 7)
    problem = dataclasses.replace(
        _opaque(make_problem("gmm-linear", {"dim": 8, "num_steps": 5})), guidance="variational"
    )
    problem.guide(torch.zeros(1, 8), torch.tensor([2]), problem.measurements[:1])
    assert "for some hundred elements of x: 8 are known too little by 1000 draws" in caplog.text


def test_under_a_field_its_own_covariance_guides(generator):
    problem = make_problem("galaxy-field", {"size": 8, "num_steps": 40})
    weights = _untrained(dataclasses.replace(problem, guidance="variational"), 1_000, generator)
    flat = _untrained(dataclasses.replace(_opaque(problem), guidance="variational"), 1_000, generator)
    assert float(weights.mean()) > float(flat.mean()) - 0.5  # of the covariance that draws have
    assert float(weights.logsumexp(0)) - math.log(1_000) - float(weights.mean()) < 3.0


def test_with_a_gain_of_one_a_posterior_is_nearly_exact_before_any_training(generator):
    """gmm-linear: the bound of paths as they are drawn is within 0.3 nats of log Z, and the weights give log Z."""
    problem = dataclasses.replace(make_problem("gmm-linear", {"num_steps": 100}), guidance="variational")
    log_weight = _untrained(problem, 2_000, generator)
    exact = problem.exact[0].log_partition
    assert exact - 0.3 < float(log_weight.mean()) < exact + 0.05
    assert float(log_weight.logsumexp(0)) - math.log(2_000) == pytest.approx(exact, abs=0.05)
