"""Paths drawn anew to stored end points: valid residuals, and the gradient of whole paths in expectation."""

import numpy as np
import pytest
import torch

from diffusion.denoiser import GaussianDenoiser
from diffusion.end_points import EndPoints
from diffusion.path import denoise_path, path_log_prior, path_log_ratio
from diffusion.posterior import ControlPosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from diffusion.trajectory import Trajectory
from envs.exact.chain import ChainPosterior
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from envs.problem import InverseProblem
from learner.gradient import GradientPlan, RowLimits, accumulate_gradient


@pytest.fixture(scope="module")
def isotropic() -> InverseProblem:
    """A Gaussian prior of one variance in all directions, whose chain is the exact reverse of the noising."""
    denoiser = GaussianDenoiser(torch.tensor([0.5, -0.3, 0.0]).double(), 0.7 * torch.eye(3).double())
    prior = Prior(denoiser, make_schedule("vp-cosine-zero-snr", 8), (3,), denoiser.denoising_variance)
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.3, 1.0]]).double()
    measurement = torch.tensor([[1.5, -0.7]])
    exact = ChainPosterior(prior, matrix, 0.4, measurement[0])
    likelihood = GaussianLikelihood(Matrix(matrix), 0.4)
    return InverseProblem(
        name="isotropic", prior=prior, likelihood=likelihood, measurements=measurement, exact=(exact,)
    )


def _end_points(problem, samples):
    count = len(samples)
    log_likelihood = problem.log_likelihood(samples, torch.zeros(count, dtype=torch.long))
    return EndPoints(
        uid=np.arange(count, dtype=np.uint64),
        samples=samples.float().numpy(),
        log_behaviour_ratio=np.linspace(0, 1, count, dtype=np.float32),
        log_likelihood=log_likelihood.float().numpy(),
        measurement_id=np.zeros(count, dtype=np.int64),
        policy_version=np.zeros(count, dtype=np.int64),
        origin=np.zeros(count, dtype=np.uint8),
    )


@pytest.mark.parametrize("where", ["posterior", "prior", "far"])
def test_with_the_exact_posterior_noised_paths_have_residuals_below_1e_4(gaussian_problem, where):
    problem, (exact,) = gaussian_problem, gaussian_problem.exact
    generator = torch.Generator().manual_seed(0)
    samples = {
        "posterior": lambda: exact.sample(200, generator),
        "prior": lambda: problem.prior.denoiser.sample(200, generator),
        "far": lambda: 3 * torch.randn(200, 4, generator=generator, dtype=torch.float64),
    }[where]()
    path = _end_points(problem, samples).noised(problem.prior, generator)
    states, denoised = torch.from_numpy(path.states), torch.from_numpy(path.denoised)
    log_ratio = path_log_ratio(exact, states, denoised, problem.measurements.expand(200, -1))
    log_ratio = log_ratio.double().sum(1)
    assert log_ratio.abs().max() > 1.0
    residual = exact.log_partition + log_ratio - torch.from_numpy(path.log_likelihood)
    assert residual.abs().max() < (1e-3 if where == "far" else 1e-4)


def test_a_noised_path_ends_in_x_and_carries_the_priors_numbers_and_the_weight_of_x(gaussian_problem):
    problem = gaussian_problem
    points = _end_points(problem, problem.exact[0].sample(50, torch.Generator().manual_seed(1)))
    path = points.noised(problem.prior, torch.Generator().manual_seed(2))
    assert np.array_equal(path.samples, points.samples) and path.num_steps == 10
    states = torch.from_numpy(path.states)
    denoised = denoise_path(problem.prior, states)
    assert np.array_equal(path.denoised, denoised.numpy())
    assert np.array_equal(path.log_prior, path_log_prior(problem.prior, states, denoised).numpy())
    assert np.array_equal(path.log_importance, points.log_importance)
    for name in ("uid", "log_likelihood", "measurement_id", "policy_version", "origin"):
        assert np.array_equal(getattr(path, name), getattr(points, name))
    again = points.noised(problem.prior, torch.Generator().manual_seed(2))
    assert np.array_equal(again.states, path.states)
    other = points.noised(problem.prior, torch.Generator().manual_seed(3))
    assert not np.array_equal(other.states[:, 0], path.states[:, 0])


def _gradients(problem, posterior, states, path_batch):
    """[batches, parameters] gradient of the mean squared residual of batches of 40 paths."""
    gradients = []
    rows = torch.zeros(40, dtype=torch.long)
    for part in states.float().split(40):
        likelihood = problem.log_likelihood(part[:, -1], rows)

        def loss(log_ratio, likelihood=likelihood):
            residual = log_ratio.sum(1) - 2.0 - likelihood
            return residual.square().mean(), residual

        posterior.zero_grad()
        batch = path_batch(problem.prior, part, problem.measurements[rows])
        accumulate_gradient(posterior, batch, loss, GradientPlan(limits=RowLimits(10_000, 10_000)))
        gradients.append(torch.cat([p.grad.flatten() for p in posterior.parameters()]).double())
    return torch.stack(gradients)


def test_the_gradient_over_noised_paths_is_that_over_whole_ones_in_expectation(isotropic, path_batch):
    torch.manual_seed(0)
    posterior = ControlPosterior(isotropic.prior, (2,), isotropic.gradient, hidden=4, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    posterior.gain.data.normal_(0.0, 0.2)
    whole = isotropic.exact[0].sample_path(10_000, torch.Generator().manual_seed(0))
    points = _end_points(isotropic, whole[:, -1])
    noised = torch.from_numpy(points.noised(isotropic.prior, torch.Generator().manual_seed(1)).states)
    assert not torch.allclose(noised[:, 0], whole[:, 0].float(), atol=0.1)
    expected = _gradients(isotropic, posterior, whole, path_batch)

    def discrepancy(states):
        difference = _gradients(isotropic, posterior, states, path_batch) - expected
        z = difference.mean(0) / (difference.std(0) / len(difference) ** 0.5 + 1e-12)
        return float(z.square().mean())

    assert discrepancy(noised) < 2.0  # 1 for equal expectations
    wrong = noised.clone()
    wrong[:, 1:-1] *= 1.1  # a noising kernel that is off by a tenth
    assert discrepancy(wrong) > 5.0


def test_end_points_are_those_of_a_trajectory_row_by_row():
    states = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    trajectory = Trajectory(
        uid=np.array([7, 9], dtype=np.uint64),
        states=states,
        log_prior=np.zeros((2, 3), dtype=np.float32),
        log_behaviour_ratio=np.array([1.0, 2.0], dtype=np.float32),
        log_likelihood=np.array([-1.0, -5.0], dtype=np.float32),
        measurement_id=np.array([0, 3]),
        policy_version=np.array([4, 4]),
        origin=np.array([1, 2], dtype=np.uint8),
    )
    points = EndPoints.of(trajectory)
    assert np.array_equal(points.samples, states[:, -1])
    assert points.take(np.array([1])).uid.tolist() == [9]
    assert np.array_equal(points.log_importance, trajectory.log_importance)
    with pytest.raises(ValueError, match=r"uid must be \[2\] to match samples, got \(3,\)"):
        EndPoints(**(points.arrays() | {"uid": np.zeros(3, dtype=np.uint64)}))
