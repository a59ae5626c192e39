"""Training-free guidance: each formula against an independent computation, and its paths against their density."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig
from actors.guidance import DiffusionPosteriorSampling, GuidanceConfig, GuidedProposal, PseudoinverseGuidance
from diffusion.denoiser import GaussianDenoiser
from diffusion.kernel import normal_log_prob
from diffusion.posterior import ControlPosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem, make_problem
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix

STEPS, NOISE = 8, 0.3
MATRIX = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]], dtype=torch.float64)


class Bend(torch.nn.Module):
    """A nonlinear operator from three numbers to two."""

    measurement_shape = (2,)

    def forward(self, value):
        return torch.tanh(value @ MATRIX.to(value).T) + value[:, :2] ** 2


def _problem(covariance, operator, schedule="vp-cosine-zero-snr"):
    """Three Gaussian numbers seen through `operator`."""
    denoiser = GaussianDenoiser(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), covariance)
    prior = Prior(denoiser, make_schedule(schedule, STEPS), (3,), denoiser.denoising_variance)
    measurements = torch.tensor([[0.7, -1.1]])
    return InverseProblem(
        name="three", prior=prior, likelihood=GaussianLikelihood(operator, NOISE), measurements=measurements
    )


def _arguments(problem, index, count=5):
    state = torch.randn(count, 3, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    step = torch.full((count,), index)
    denoised = problem.prior.denoised(state, step)
    return state, step, denoised, problem.measurements.double().expand(count, -1)


def _log_evidence_given(problem, state, index, variance):
    """log p(y | s_k) of x ~ N(mean, variance I), from the joint Gaussian of s_k and y; nothing of it is in the code."""
    alpha, sigma = float(problem.prior.alpha[index]), float(problem.prior.sigma[index])
    mean, measurement = problem.prior.denoiser.mean, problem.measurements[0].double()
    of_state = alpha**2 * variance + sigma**2
    cross = alpha * variance * MATRIX  # Cov(y, s)
    conditional = (
        variance * MATRIX @ MATRIX.T + NOISE**2 * torch.eye(2, dtype=torch.float64) - cross @ cross.T / of_state
    )
    centre = MATRIX @ mean + (state - alpha * mean) @ cross.T / of_state
    return torch.distributions.MultivariateNormal(centre, conditional).log_prob(measurement)


@pytest.mark.parametrize("index", range(STEPS))
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_pigdm_is_the_exact_score_of_the_measurement_where_x_given_s_is_isotropic(index, variance):
    problem = _problem(variance * torch.eye(3, dtype=torch.float64), Matrix(MATRIX))
    state, *rest = _arguments(problem, index)
    leaf = state.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(_log_evidence_given(problem, leaf, index, variance).sum(), leaf)
    control = PseudoinverseGuidance(problem)(state, *rest)
    assert control.numpy() == pytest.approx((problem.prior.std[index] * score).numpy(), rel=1e-6, abs=1e-12)
    assert index == 0 or float(control.abs().min()) > 1e-3  # at index 0 the state says nothing of x


def test_pigdm_takes_a_matrix_of_more_rows_than_columns_and_rows_of_different_steps():
    tall = torch.cat([MATRIX, MATRIX[:1] * 2, MATRIX[:1] + MATRIX[1:]])
    covariance = torch.diag(torch.tensor([2.0, 1.0, 0.4], dtype=torch.float64))
    problem = dataclasses.replace(
        _problem(covariance, Matrix(MATRIX)),
        likelihood=GaussianLikelihood(Matrix(tall), NOISE),
        measurements=torch.tensor([[0.7, -1.1, 1.4, -0.4]]),
    )
    state, step, _, measurement = _arguments(problem, 4)
    step = torch.tensor([1, 3, 5, 6, 7])
    denoised, prior = problem.prior.denoised(state, step), problem.prior
    control = PseudoinverseGuidance(problem)(state, step, denoised, measurement)
    for row, index in enumerate(step.tolist()):
        inverse = torch.linalg.inv(
            prior.uncertainty[index] ** 2 * tall @ tall.T + NOISE**2 * torch.eye(4, dtype=torch.float64)
        )
        jacobian = torch.autograd.functional.jacobian(
            lambda s, index=index: prior.denoiser(s[None], prior.alpha[[index]], prior.sigma[[index]])[0], state[row]
        )
        expected = prior.std[index] * jacobian.T @ tall.T @ inverse @ (measurement[row] - tall @ denoised[row])
        assert control[row].numpy() == pytest.approx(expected.numpy(), rel=1e-9)


@pytest.mark.parametrize("index", range(1, STEPS))
@pytest.mark.parametrize("operator", [Matrix(MATRIX), Bend()])
@pytest.mark.parametrize("noised", [False, True])
def test_dps_is_the_finite_difference_of_the_residual_norm_at_the_denoised_estimate(index, operator, noised):
    covariance = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.8, -0.3], [0.0, -0.3, 0.6]], dtype=torch.float64)
    problem, zeta, small = _problem(covariance, operator), 0.7, 1e-5
    state, step, denoised, measurement = _arguments(problem, index)

    def norm(value):
        return (measurement - operator(problem.prior.denoised(value, step))).norm(dim=1)

    shifts = small * torch.eye(3, dtype=torch.float64)
    slope = torch.stack([(norm(state + shift) - norm(state - shift)) / (2 * small) for shift in shifts], 1)
    level = float(problem.prior.alpha[index]) if noised else 1.0
    expected = -zeta * level / problem.prior.std[index] * slope
    guide = DiffusionPosteriorSampling(problem, zeta, noised=noised)
    control = guide(state, step, denoised, measurement)
    assert control.numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-8)
    assert float(control.norm(dim=1).min()) > 1e-3
    guidance = problem.prior.pull_back(state, step, lambda value: problem.gradient(value, measurement))[1]
    assert guide(state, step, denoised, measurement, guidance).numpy() == pytest.approx(control.numpy(), rel=1e-12)
    shifted = dataclasses.replace(problem, guidance="shift")  # which is not what dps follows
    guide = DiffusionPosteriorSampling(shifted, zeta, noised=noised)
    assert guide(state, step, denoised, measurement, 2 * guidance).numpy() == pytest.approx(control.numpy(), rel=1e-12)


def test_on_a_schedule_that_keeps_the_signal_the_noised_residual_is_the_residual():
    problem = _problem(torch.eye(3, dtype=torch.float64), Matrix(MATRIX), "ve")
    arguments = _arguments(problem, 3)
    plain, noised = (DiffusionPosteriorSampling(problem, 0.2, noised=noised)(*arguments) for noised in (False, True))
    assert torch.equal(plain, noised)


def test_a_measurement_that_is_met_exactly_gives_dps_no_direction():
    problem = _problem(torch.eye(3, dtype=torch.float64), Matrix(MATRIX))
    state, step, denoised, _ = _arguments(problem, 4)
    met = denoised @ MATRIX.T
    assert not DiffusionPosteriorSampling(problem, 1.0)(state, step, denoised, met).any()


@pytest.mark.parametrize("uses_guidance", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1e4])
@pytest.mark.parametrize("kind", ["dps", "dps-cla", "pigdm"])
def test_the_behaviour_ratio_of_guided_paths_is_that_of_two_normal_densities(
    gaussian_problem, kind, scale, uses_guidance
):
    torch.manual_seed(0)
    problem = gaussian_problem
    gradient = problem.gradient if uses_guidance else None
    posterior = ControlPosterior(problem.prior, (2,), gradient, hidden=8, depth=1)
    only, guidance = {kind: 1.0}, GuidanceConfig(scale=scale)
    config = ActorConfig(batch_size=20, mixture=only, final_mixture=only, guidance=guidance)
    made = Actor(problem, posterior, config, seed=0).act()
    assert (made.guidance is not None) == uses_guidance and set(made.origin.tolist()) == {8}
    states, rows = torch.from_numpy(made.states), torch.zeros(20, dtype=torch.long)
    guide = (
        PseudoinverseGuidance(problem)
        if kind == "pigdm"
        else DiffusionPosteriorSampling(problem, scale, noised=kind == "dps-cla")
    )
    ratio, largest = 0.0, 0.0
    for index in range(problem.num_steps):
        step, state, following = torch.full((20,), index), states[:, index], states[:, index + 1].double()
        denoised = problem.prior.denoised(state, step)
        u = guide(state, step, denoised, problem.measurements[rows]).double()
        u = (
            u / (1 + u.square().mean(1, keepdim=True) / 9).sqrt()
        )  # no more than 3 standard deviations in all directions
        mean, std = problem.prior.mean(state, step, denoised).double(), problem.prior.std[step].double()
        ratio += normal_log_prob(following, mean + std[:, None] * u, std) - normal_log_prob(following, mean, std)
        largest = max(largest, float(u.square().mean(1).sqrt().max()))
    assert made.log_behaviour_ratio == pytest.approx(ratio.numpy(), rel=2e-3, abs=5e-3)
    assert np.abs(made.log_behaviour_ratio).max() > 1
    assert largest < 3.0 and (largest > 2.9) == (scale > 1 and kind != "pigdm")


@pytest.mark.parametrize(("name", "dim", "least"), [("gaussian-linear", 16, 0.5), ("gmm-linear", 16, 0.3)])
def test_pigdm_alone_is_nearly_the_posterior_and_its_weights_give_the_evidence(name, dim, least):
    problem = make_problem(name, {"dim": dim})
    posterior = ControlPosterior(problem.prior, tuple(problem.measurements.shape[1:]), None, hidden=8, depth=1)
    proposal, generator = GuidedProposal(PseudoinverseGuidance(problem)), torch.Generator().manual_seed(0)
    made = proposal.explore(problem, posterior, torch.zeros(1000, dtype=torch.long), 0.0, generator)
    weight = (made.log_weight - problem.exact[0].log_partition).exp()
    effective = float(weight.sum() ** 2 / weight.square().sum() / 1000)
    assert effective > least
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * float(weight.std()) / 1000**0.5 + 0.03)


def test_an_energy_has_no_residual_to_be_guided_by():
    problem = make_problem("funnel")
    for make in (lambda: DiffusionPosteriorSampling(problem, 0.1), lambda: PseudoinverseGuidance(problem)):
        with pytest.raises(ValueError, match=r"follows the residual y - A\(x\) .* of problem 'funnel' is EnergyRatio"):
            make()


def test_pigdm_refuses_an_operator_that_is_not_linear_and_dps_takes_it():
    problem = _problem(torch.eye(3, dtype=torch.float64), Bend())
    DiffusionPosteriorSampling(problem, 0.1)
    with pytest.raises(ValueError, match=r"linear forward operator A, .* of problem 'three' is Bend; dps takes any"):
        PseudoinverseGuidance(problem)


def test_noise_of_a_size_for_each_element_is_refused():
    problem = make_problem("gaussian-linear", {"num_steps": 4})
    likelihood = GaussianLikelihood(problem.likelihood.operator, torch.full(problem.likelihood.measurement_shape, 0.3))
    uneven = dataclasses.replace(problem, likelihood=likelihood)
    for make in (lambda: DiffusionPosteriorSampling(uneven, 0.1), lambda: PseudoinverseGuidance(uneven)):
        with pytest.raises(ValueError, match="published for noise of one size; that of problem 'gaussian-linear' has"):
            make()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_no_length_is_refused(scale):
    with pytest.raises(ValueError, match=f"actor.guidance.scale must be positive and finite, got {scale}"):
        GuidanceConfig(scale=scale)
