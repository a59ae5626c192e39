"""Products with the Fisher information, against dense matrices and closed forms."""

import dataclasses

import pytest
import torch

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.posterior import PosteriorConfig, make_posterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import make_problem
from envs.guides import REPEATS, SHIFTS
from envs.information import information, information_matrix
from envs.likelihoods import (
    ClosureLikelihood,
    CorrelatedGaussianLikelihood,
    GaussianLikelihood,
    MeasuredBackgroundLikelihood,
    PoissonGaussianLikelihood,
    PoissonLikelihood,
    joint,
)
from envs.operators import Lognormal, Matrix
from envs.problem import InverseProblem

MATRIX = torch.tensor([[1.0, 0.4, 0.0], [0.2, 0.9, 0.3]], dtype=torch.float64)
VALUE = torch.tensor([[0.3, 0.5, 0.2], [1.1, 0.4, 0.9]], dtype=torch.float64)


def _dense(likelihood, value, measurement):
    """[N, D, D] of the products with unit vectors."""
    product = information(likelihood, value, measurement)
    unit = torch.eye(value[0].numel(), dtype=torch.float64)
    return torch.stack([product(row.expand_as(value)) for row in unit], -1)


def _counts(weight):
    """A^T diag(weight [N, Y]) A."""
    return MATRIX.T @ (weight[..., None] * MATRIX)


def test_the_information_of_gaussian_noise_is_that_of_the_matrix():
    seen = torch.zeros(2, 2)
    for noise in (0.3, torch.tensor([0.3, 2.0], dtype=torch.float64)):
        expected = _counts((torch.as_tensor(noise, dtype=torch.float64) ** -2).expand(2, 2))
        found = _dense(GaussianLikelihood(Matrix(MATRIX), noise), VALUE, seen)
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-6)


def test_the_information_of_counts_does_not_depend_on_what_was_counted():
    """grad lambda grad lambda^T / variance, also where the counts are far from what x would give."""
    seen = torch.tensor([[0.0, 40.0], [7.0, 0.0]])
    mean = 5 * (VALUE @ MATRIX.T) + 2
    poisson = PoissonLikelihood(Matrix(MATRIX), 5.0, 2.0)
    assert _dense(poisson, VALUE, seen).numpy() == pytest.approx(_counts(25 / mean).numpy(), rel=1e-6)
    read = PoissonGaussianLikelihood(Matrix(MATRIX), 3.0, 2.0, 5.0, 2.0)
    expected = _counts(100 / (4 * mean + 9))
    assert _dense(read, VALUE, seen).numpy() == pytest.approx(expected.numpy(), rel=1e-6)


def test_the_information_over_a_measured_background_has_the_noise_of_both():
    beside, ratio = torch.tensor([3.0, 0.0, 7.0]), 0.4
    likelihood = MeasuredBackgroundLikelihood(Lognormal((3,), 1.0), beside, ratio)
    source = (VALUE - 0.5).exp()
    expected = torch.diag_embed(source**2 / (source + ratio * (beside + 0.5) * (1 + ratio)))
    found = _dense(likelihood, VALUE, torch.tensor([[9.0, 0.0, 1.0], [0.0, 3.0, 50.0]]))
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-12)


def test_the_information_of_several_instruments_is_the_sum_of_theirs_whatever_was_counted():
    operator = Lognormal((3,), 1.0)
    gaussian, counts = GaussianLikelihood(operator, 0.3), PoissonLikelihood(operator, 2.0)
    likelihood = joint([gaussian, counts])
    mean = (VALUE - 0.5).exp()
    expected = torch.diag_embed(mean**2 / 0.3**2 + 2.0 * mean)
    found = _dense(likelihood, VALUE, torch.full((len(VALUE), 6), 40.0))  # far from what is expected
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["radio-closure", "image-phase-retrieval"])
def test_the_information_of_a_curved_operator_is_that_of_its_jacobian(name, generator):
    problem = make_problem(name, {"num_steps": 2})
    likelihood, seen = problem.likelihood, problem.measurements[:1].double()
    assert isinstance(likelihood, ClosureLikelihood | GaussianLikelihood | CorrelatedGaussianLikelihood)
    value = problem.prior.sample(1, generator).double()
    slope = torch.autograd.functional.jacobian(lambda at: likelihood.standardised(at, seen).flatten(), value)
    slope = slope.reshape(len(slope), -1)
    vector = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    found = information(likelihood, value, seen)(vector)
    expected = slope.T @ (slope @ vector.flatten())
    assert found.flatten().numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("measured", [2, 9, "bent"])
def test_the_matrix_is_that_of_the_products(generator, measured):
    """From slopes where y has few elements, and from products with the axes where it has many."""
    if measured == "bent":
        measured, operator = 3, Lognormal((3,), 0.5)
    else:
        operator = Matrix(torch.rand(measured, 3, generator=generator, dtype=torch.float64))
    seen = torch.ones(2, measured)
    noise = [GaussianLikelihood(operator, 0.4), PoissonGaussianLikelihood(operator, 3.0, 2.0, 5.0, 2.0)]
    for likelihood in (*noise, PoissonLikelihood(operator, 5.0, 2.0), joint(noise)):
        both = seen.repeat(1, 2) if likelihood.measurement_shape != (measured,) else seen
        expected = _dense(likelihood, VALUE, both)
        for row in range(2):
            for rows in (2, 128):
                found = information_matrix(likelihood, VALUE[row], both[row].double(), rows)
                assert found.numpy() == pytest.approx(expected[row].numpy(), rel=1e-6, abs=1e-9)


def _problem(denoiser, event_shape, likelihood, seen):
    levels = make_schedule("vp-cosine-zero-snr", 6)
    prior = Prior(denoiser, levels, event_shape, denoiser.denoising_variance)
    return InverseProblem(name="test", prior=prior, likelihood=likelihood, measurements=seen, guidance="shift")


def test_the_guide_of_a_gaussian_prior_is_the_shift_of_the_exact_posterior(generator):
    """E[x | s, y] - E[x | s] of a correlated Gaussian, pure noise as a state included."""
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    covariance = root @ root.T + 0.1 * torch.eye(3)
    noise = torch.tensor([0.3, 0.7], dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(MATRIX), noise)
    seen = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    problem = _problem(GaussianDenoiser(torch.ones(3), covariance), (3,), likelihood, seen[:1].float())
    state, step = torch.randn(6, 3, generator=generator, dtype=torch.float64), torch.arange(6)
    denoised, shift = problem.guide(state, step, seen)
    assert denoised.numpy() == pytest.approx(problem.prior.denoised(state, step).numpy())
    for row in range(6):
        ratio = (problem.prior.alpha[row] / problem.prior.sigma[row]) ** 2
        left = torch.linalg.inv(torch.linalg.inv(covariance) + ratio * torch.eye(3, dtype=torch.float64))
        across = MATRIX @ left @ MATRIX.T + torch.diag(noise**2)
        expected = left @ MATRIX.T @ torch.linalg.solve(across, seen[row] - MATRIX @ denoised[row])
        assert shift[row].numpy() == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-10)


def test_a_posterior_with_a_gain_of_one_follows_the_shift(generator):
    """u = b_k (E[x | s, y] - x^) / std_k, within its bounds: the best control that transitions of the prior allow."""
    likelihood = GaussianLikelihood(Matrix(0.1 * MATRIX), 0.5)
    seen = 0.1 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    problem = _problem(GaussianDenoiser(torch.zeros(3), 0.5), (3,), likelihood, seen[:1].float())
    config = PosteriorConfig(hidden=8, likelihood_gradient="covariance")
    posterior = make_posterior(config, problem.prior, (2,), problem.gradient, None, problem.guide).double()
    assert posterior.uses_guidance and posterior.sees_measurement and not posterior.differentiable
    prior, step = problem.prior, torch.arange(6)
    state = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    denoised, shift = problem.guide(state, step, seen)
    assert not posterior.control(state, step, denoised, seen).any()
    started = dataclasses.replace(config, initial_gain=1.0)
    posterior = make_posterior(started, prior, (2,), problem.gradient, None, problem.guide).double()
    expected = (prior.denoised_coefficient / prior.std)[:, None] * shift
    for carried in (None, shift):
        control = posterior.control(state, step, denoised, seen, carried).detach()
        assert control.numpy() == pytest.approx(expected.numpy(), rel=2e-3, abs=1e-6)  # the bounds, to second order
    assert float(expected.abs().max()) > 0.01


def test_a_repeated_shift_moves_the_state_by_that_of_an_isotropic_error_and_asks_the_prior_again(generator):
    """Written out with dense matrices: x^ + e^2 A^T (e^2 A A^T + R)^-1 (y - A x^), J times."""
    noise = torch.tensor([0.3, 0.7], dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(MATRIX), noise)
    seen = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    means = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    shifting = _problem(MixtureDenoiser(means, 0.1), (3,), likelihood, seen[:1].float())
    problem = dataclasses.replace(shifting, guidance="repeated")
    state, step = torch.randn(6, 3, generator=generator, dtype=torch.float64), torch.arange(6)
    denoised, moved = problem.guide(state, step, seen)
    prior = problem.prior
    first = last = prior.denoised(state, step)
    for _ in range(REPEATS):
        variance = prior.uncertainty.square()[:, None, None]
        across = torch.linalg.inv(variance * (MATRIX @ MATRIX.T) + torch.diag(noise**2))
        residual = seen - last @ MATRIX.T
        shift = variance[:, 0] * torch.einsum("nij,nj->ni", MATRIX.T @ across, residual)
        state = state + prior.alpha[:, None] * shift
        last = prior.denoised(state, step)
    assert denoised.numpy() == pytest.approx(first.numpy())
    assert moved.numpy() == pytest.approx((last - first).numpy(), rel=1e-6, abs=1e-9)
    config = PosteriorConfig(hidden=8, likelihood_gradient="repeated")
    posterior = make_posterior(config, prior, (2,), problem.gradient, None, problem.guide).double()
    assert posterior.uses_guidance and not posterior.control(state, step, denoised, seen).any()
    posterior.gain.data[:] = torch.tensor([[0.2], [0.7]])
    carried = problem.guide(state, step, seen)[1]
    with torch.no_grad():
        asked = posterior.control(state, step, first, seen)
        assert asked.any() and torch.equal(asked, posterior.control(state, step, first, seen, carried))


def test_a_repeated_shift_with_the_covariance_moves_the_state_by_it_and_ends_with_one(generator):
    """Written out with dense matrices, S from differences of x^ along the axes."""
    noise = torch.tensor([0.3, 0.7], dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(MATRIX), noise)
    seen = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    means = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    shifting = _problem(MixtureDenoiser(means, 0.1), (3,), likelihood, seen[:1].float())
    prior, step = shifting.prior, torch.arange(1, 6)  # alpha is 0 before
    state = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    denoised, moved = dataclasses.replace(shifting, guidance="repeated-shift").guide(state, step, seen)

    def shift(at):
        ahead, behind = (
            torch.stack([prior.denoised(at + by * axis, step) for axis in torch.eye(3, dtype=torch.float64)], 2)
            for by in (1e-5, -1e-5)
        )
        scale = (prior.sigma.square() / prior.alpha)[step, None, None]
        covariance = scale * (ahead - behind) / 2e-5
        across = MATRIX @ covariance @ MATRIX.T + torch.diag(noise**2)
        last = prior.denoised(at, step)
        return last, torch.einsum(
            "nij,nj->ni", covariance @ MATRIX.T @ torch.linalg.inv(across), seen - last @ MATRIX.T
        )

    first, change = shift(state)
    for _ in range(SHIFTS):
        state = state + prior.alpha[step, None] * change
        last, change = shift(state)
    assert denoised.numpy() == pytest.approx(first.numpy())
    assert moved.numpy() == pytest.approx((last + change - first).numpy(), rel=1e-5, abs=1e-7)
    assert float((last - first).abs().max()) > 0.1


def test_a_repeated_shift_finds_the_mode_that_y_tells_where_a_single_one_does_not():
    """Two modes far apart and a state nearer to one; y, of the first element, says the other; so must the second."""
    means = torch.tensor([[2.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(torch.tensor([[1.0, 0.0]], dtype=torch.float64)), 0.5)
    seen = torch.full((1, 1), -2.0, dtype=torch.float64)
    once = _problem(MixtureDenoiser(means, 0.05), (2,), likelihood, seen.float())
    step = torch.tensor([4])
    alpha, sigma = float(once.prior.alpha[4]), float(once.prior.sigma[4])
    state = torch.full((1, 2), 0.3 * alpha, dtype=torch.float64)
    denoised, shift = once.guide(state, step, seen)
    moved = dataclasses.replace(once, guidance="repeated").guide(state, step, seen)[1]
    spread, gain = alpha**2 * 0.05 + sigma**2, alpha * 0.05 / (alpha**2 * 0.05 + sigma**2)
    given = means + gain * (state - alpha * means)  # E[x | s] of each component, with a variance of
    left = 0.05 - gain * alpha * 0.05
    log_weight = -0.5 * (state - alpha * means).square().sum(1) / spread
    weight = (log_weight - 0.5 * (seen[0] - given[:, 0]).square() / (left + 0.25)).softmax(0)
    exact = float((weight * given[:, 1]).sum())
    assert float(denoised[0, 1]) > 1.5 and exact < -1.5
    assert abs(float((denoised + moved)[0, 1]) - exact) < 0.2
    assert float((denoised + shift)[0, 1]) > 1.0


@pytest.mark.parametrize("features", ["covariance", "repeated", "repeated-covariance"])
def test_only_a_likelihood_with_residuals_has_a_shift(features):
    problem = dataclasses.replace(make_problem("gmm-25"), guidance="shift")
    assert problem.gradient is not None and not problem.shiftable
    config = PosteriorConfig(likelihood_gradient=features)
    with pytest.raises(ValueError, match=f"likelihood_gradient {features} needs `shift`, the guide of a problem whose"):
        make_posterior(config, problem.prior, (1,), problem.gradient)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_gain": 1.0},
        {"initial_gain": 1.0, "likelihood_gradient": "none"},
        {"initial_gain": 1.0, "likelihood_gradient": "covariance", "form": "finetune"},
        {"initial_gain": float("nan"), "likelihood_gradient": "covariance"},
    ],
)
def test_only_a_shift_has_an_initial_gain(options):
    problem = dataclasses.replace(make_problem("gaussian-linear"), guidance="shift")
    with pytest.raises(ValueError, match=r"initial_gain must be finite, and zero but for .*, got (1.0|nan)"):
        make_posterior(PosteriorConfig(**options), problem.prior, (8,), problem.gradient, None, problem.guide)
