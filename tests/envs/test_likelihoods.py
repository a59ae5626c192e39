import math

import pytest
import torch
from scipy import stats
from torch import nn

from envs import make_problem
from envs.likelihoods import DifferentiableLikelihood, GaussianLikelihood, SimulableLikelihood
from envs.operators import Matrix, Pixels
from envs.problems.gmm_25_to_9 import gmm_25_to_9


class Square(nn.Module):
    """A nonlinear operator: the squares of x."""

    measurement_shape = (3,)

    def forward(self, value):
        return value.flatten(1).square()


OPERATORS = [
    Matrix(torch.tensor([[0.3, -1.2, 0.7], [2.0, 0.1, -0.4]])),
    Pixels(torch.tensor([True, False, True])),
    Square(),
]


def _autograd(likelihood, value, measurement):
    leaf = value.clone().requires_grad_(True)
    return torch.autograd.grad(likelihood.log_prob(leaf, measurement).sum(), leaf)[0]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_the_gaussian_log_likelihood_is_the_sum_of_normal_log_densities(operator, generator):
    value = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    measurement = torch.randn(6, *operator.measurement_shape, generator=generator, dtype=torch.float64)
    expected = stats.norm(operator(value).numpy(), 0.3).logpdf(measurement.numpy()).sum(1)
    got = GaussianLikelihood(operator, 0.3).log_prob(value, measurement)
    assert got.shape == (6,)
    assert got.numpy() == pytest.approx(expected, rel=1e-12)


def test_the_likelihood_integrates_to_one_over_the_measurement():
    likelihood = GaussianLikelihood(Matrix(torch.tensor([[1.0, -2.0]])), 0.4)
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64)[:, None]
    value = torch.tensor([[0.7, 1.1]], dtype=torch.float64).expand(2001, 2)
    assert float(torch.trapezoid(likelihood.log_prob(value, grid).exp(), grid[:, 0])) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_the_gaussian_gradient_is_that_of_autograd(operator, shape, generator):
    likelihood = GaussianLikelihood(operator, 0.3)
    value = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    measurement = torch.randn(6, *operator.measurement_shape, generator=generator)
    got = likelihood.gradient(value, measurement)
    assert got.shape == value.shape
    assert got.numpy() == pytest.approx(_autograd(likelihood, value, measurement).numpy(), rel=1e-10, abs=1e-10)
    with torch.no_grad():
        assert torch.equal(likelihood.gradient(value, measurement), got)


def test_the_density_ratio_gradient_is_that_of_autograd(generator):
    likelihood = gmm_25_to_9(num_steps=2).likelihood
    value = 12 * torch.rand(200, 2, generator=generator, dtype=torch.float64) - 6
    expected = _autograd(likelihood, value, torch.zeros(200, 1))
    got = likelihood.gradient(value, torch.zeros(200, 1))
    assert float(expected.norm(dim=1).max()) > 1
    assert got.numpy() == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-7)


def test_simulated_measurements_follow_the_likelihood(generator):
    likelihood = GaussianLikelihood(Matrix(torch.tensor([[1.0, -2.0]])), 0.4)
    value = torch.tensor([[0.7, 1.1]]).expand(20_000, 2)
    drawn = likelihood.sample(value, generator)
    assert drawn.shape == (20_000, 1)
    assert stats.kstest(drawn[:, 0].numpy(), stats.norm(0.7 - 2.2, 0.4).cdf).pvalue > 1e-3


def test_what_a_likelihood_can_do_shows_in_its_type():
    gaussian, ratio = GaussianLikelihood(Square(), 1.0), gmm_25_to_9(num_steps=2).likelihood
    assert isinstance(gaussian, DifferentiableLikelihood) and isinstance(gaussian, SimulableLikelihood)
    assert isinstance(ratio, DifferentiableLikelihood) and not isinstance(ratio, SimulableLikelihood)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, math.inf, math.nan])
def test_noise_without_a_density_is_refused(noise_std):
    with pytest.raises(ValueError, match=f"noise_std must be a positive finite standard deviation, got {noise_std}"):
        GaussianLikelihood(Square(), noise_std)


@pytest.mark.parametrize("noise_std", [0.4, torch.tensor([0.4, 0.1, 1.3])])
def test_the_marginal_gradient_is_that_of_y_given_an_uncertain_x(generator, noise_std):
    """Against autograd through log N(y; A m, v A A^T + sigma^2 I), v another one for each m."""
    matrix = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    likelihood = GaussianLikelihood(Matrix(matrix), noise_std)
    value = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    seen, variance = torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.linspace(0.0, 2.0, 5)
    covariance = variance[:, None, None] * (matrix @ matrix.T)
    covariance = covariance + torch.as_tensor(noise_std).double().expand(3).square().diag()
    density = torch.distributions.MultivariateNormal(value @ matrix.T, covariance).log_prob(seen)
    (expected,) = torch.autograd.grad(density.sum(), value)
    found = likelihood.marginal_gradient(value.detach(), seen, variance)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-9)


def test_only_gaussian_noise_behind_a_linear_operator_has_a_marginal_gradient():
    assert make_problem("gaussian-linear").marginal_gradient is not None
    for name in ("image-hdr", "sbibm-slcp", "gmm-25"):
        assert make_problem(name).marginal_gradient is None
