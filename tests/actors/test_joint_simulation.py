"""Joint simulation: every path is an exact draw of the posterior at the measurement that it brings."""

import dataclasses

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig
from actors.joint_simulation import JointSimulation
from diffusion.posterior import ControlPosterior, FinetunePosterior
from diffusion.trajectory import Origin
from envs import make_problem
from envs.exact.chain import ChainPosterior

JOINT = {"joint": 1.0}


def _posterior(problem, **options):
    torch.manual_seed(0)
    return ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1, **options)


def _act(problem, count=50, mixture=JOINT, **options):
    config = ActorConfig(batch_size=count, mixture=mixture, final_mixture=mixture, **options)
    return Actor(problem, _posterior(problem), config, seed=0)


def _chain(problem, measurement):
    likelihood = problem.likelihood
    return ChainPosterior(problem.prior, likelihood.operator.matrix, likelihood.noise_std, measurement)


def test_samples_are_those_of_the_exact_posterior_at_their_own_measurements(gaussian_problem):
    """White residuals x - E[x | y'] with the posterior's covariance, and no trace of y' in them."""
    count, zero, units = 20_000, torch.zeros(2), torch.eye(2)
    made = _act(gaussian_problem, count).act()
    samples, measurement = torch.from_numpy(made.samples).double(), torch.from_numpy(made.measurement).double()
    exact = _chain(gaussian_problem, zero)
    slope = torch.stack([_chain(gaussian_problem, unit).mean - exact.mean for unit in units])  # the mean is affine in y
    residual = samples - exact.mean - measurement @ slope
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(exact.covariance), residual.T, upper=False).T
    limit = 4 / count**0.5
    assert float(white.mean(0).abs().max()) < limit
    assert float((white.T @ white / count - torch.eye(4)).abs().max()) < 1.5 * limit
    standard = (measurement - measurement.mean(0)) / measurement.std(0)
    assert float((white.T @ standard / count).abs().max()) < limit
    assert float(measurement.std(0).min()) > 0.5


def test_of_the_exact_posterior_at_its_measurement_every_path_has_the_log_weight_log_evidence(gaussian_problem):
    """log p(tau) + log p(y' | x) - log pi(tau | y') = log p(y'), path by path: y', x and likelihood belong together."""
    made = _act(gaussian_problem, 5).act()
    for row in range(5):
        exact = _chain(gaussian_problem, torch.from_numpy(made.measurement[row]))
        total = 0.0
        for index in range(gaussian_problem.num_steps):
            state, following = torch.from_numpy(made.states[row, index : index + 2]).double()
            denoised, step = torch.from_numpy(made.denoised[row, index])[None].double(), torch.tensor([index])
            total += float(exact.log_ratio(following[None], state[None], step, denoised, None))
        assert made.log_likelihood[row] - total == pytest.approx(exact.log_partition, abs=1e-3)


def test_guidance_and_estimates_are_those_at_the_path_s_own_measurement(gaussian_problem):
    made, prior = _act(gaussian_problem, 6).act(), gaussian_problem.prior
    measurement = torch.from_numpy(made.measurement)
    for index in (0, 4, 9):
        state, step = torch.from_numpy(made.states[:, index]).requires_grad_(True), torch.full((6,), index)
        estimate = prior.denoiser(state, prior.alpha[step], prior.sigma[step])
        value = gaussian_problem.likelihood.log_prob(estimate, measurement).sum()
        (expected,) = torch.autograd.grad(value, state)
        assert made.guidance[:, index] == pytest.approx(expected.numpy(), abs=1e-4)
        assert made.denoised[:, index] == pytest.approx(estimate.detach().numpy(), abs=1e-5)
    assert made.measurement_id.tolist() == [-1, -2, -3, -4, -5, -6] and set(made.origin.tolist()) == {Origin.JOINT}


def test_the_importance_weight_of_a_joint_path_is_one(gaussian_problem):
    made = _act(gaussian_problem).act()
    assert made.log_importance.tolist() == [0.0] * 50
    assert made.log_likelihood.std() > 0.5


def test_a_posterior_without_guidance_gets_none(gaussian_problem):
    posterior = _posterior(gaussian_problem, guided=False)
    rows, generator = torch.zeros(3, dtype=torch.long), torch.Generator().manual_seed(0)
    made = JointSimulation(gaussian_problem).explore(gaussian_problem, posterior, rows, 0.0, generator)
    assert made.guidance is None and made.measurement.shape == (3, 2)


def test_beside_joint_paths_all_others_send_the_measurement_they_belong_to_and_alone_they_do_not(gaussian_problem):
    two = torch.cat([gaussian_problem.measurements, gaussian_problem.measurements + 1])
    problem = dataclasses.replace(gaussian_problem, measurements=two, exact=())
    mixture = {"joint": 0.25, "on-policy": 0.25, "path-search": 0.25, "pigdm": 0.25}
    actor, seen = _act(problem, 4, mixture), set()
    for _ in range(8):
        made = actor.act()
        seen |= set(made.origin.tolist())
        assert made.arrays().keys() >= {"measurement", "denoised", "guidance"} and made.measurement.dtype == np.float32
        if made.origin[0] != Origin.JOINT:
            np.testing.assert_array_equal(made.measurement, two.numpy()[made.measurement_id])
    assert seen == {Origin.JOINT, Origin.ON_POLICY, Origin.PATH_SEARCH, Origin.GUIDED}
    assert _act(problem, 4, {"on-policy": 1.0}).act().measurement is None


def test_a_likelihood_without_simulation_is_refused():
    with pytest.raises(ValueError, match=r"joint needs .* `sample`\); that of problem 'funnel', EnergyRatio, has none"):
        JointSimulation(make_problem("funnel"))


def test_a_posterior_that_does_not_see_the_measurement_is_refused_at_the_start(gaussian_problem, network_prior):
    problem = dataclasses.replace(
        make_problem("gaussian-linear", {"dim": 3, "measurement_dim": 2}), prior=network_prior, exact=()
    )
    config = ActorConfig(mixture=JOINT, final_mixture={"on-policy": 1.0})
    with pytest.raises(ValueError, match="teach nothing to a posterior that does not see y; use form control"):
        Actor(problem, FinetunePosterior(network_prior), config, seed=0)


def test_no_guidance_is_computed_where_none_is_sent(gaussian_problem, monkeypatch):
    asked = []
    monkeypatch.setattr("actors.joint_simulation.guide_path", lambda *given: asked.append(given))
    made = _act(gaussian_problem, 4, store_denoised=False).act()
    assert made.guidance is None and not asked
    _act(gaussian_problem, 4).act()
    assert len(asked) == 1
