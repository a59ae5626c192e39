"""The denoiser of a mixture whose components have covariances of their own, against the tied one and quadrature."""

import pytest
import torch

from diffusion.denoiser import MixtureDenoiser
from diffusion.untied_mixture import UntiedMixtureDenoiser

ALPHA, SIGMA = torch.tensor([0.0, 0.4, 0.9, 1.0]), torch.tensor([1.0, 0.8, 0.4, 0.05])


def test_with_one_covariance_it_is_the_tied_mixture(plane_mixture, generator):
    covariances = plane_mixture.covariance.expand(3, 2, 2)
    untied = UntiedMixtureDenoiser(plane_mixture.means, covariances, plane_mixture.log_weights)
    state = torch.randn(4, 2, generator=generator)
    expected = MixtureDenoiser(plane_mixture.means, plane_mixture.covariance, plane_mixture.log_weights)
    assert untied(state, ALPHA, SIGMA).numpy() == pytest.approx(expected(state, ALPHA, SIGMA).numpy(), abs=1e-5)


def test_it_is_the_mean_of_x_given_the_state_by_quadrature():
    """Two components of a narrow and a wide tilted covariance, on a fine grid of x."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
    covariances = torch.tensor([[[0.05, 0.03], [0.03, 0.04]], [[0.8, -0.5], [-0.5, 0.6]]], dtype=torch.float64)
    log_weights = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = sum(
        weight.exp() * torch.distributions.MultivariateNormal(mean, covariance).log_prob(grid).exp()
        for weight, mean, covariance in zip(log_weights, means, covariances, strict=True)
    )
    state = torch.tensor([[0.3, -0.4], [0.6, 0.2], [-0.8, 0.3], [0.9, 0.2]], dtype=torch.float64)
    found = UntiedMixtureDenoiser(means, covariances, log_weights)(state, ALPHA, SIGMA)
    for row in range(4):
        away = (state[row] - ALPHA[row].double() * grid).square().sum(1)
        weight = density * (-0.5 * away / SIGMA[row].double() ** 2).exp()
        assert found[row].numpy() == pytest.approx((weight @ grid / weight.sum()).numpy(), abs=1e-5)


def test_x_has_the_shape_that_is_asked_for_and_the_dtype_of_the_state():
    means, covariances = torch.zeros(2, 4), torch.eye(4).expand(2, 4, 4)
    denoiser = UntiedMixtureDenoiser(means, covariances, event_shape=(1, 2, 2))
    for dtype in (torch.float32, torch.float64):
        denoised = denoiser(torch.ones(4, 1, 2, 2, dtype=dtype), ALPHA, SIGMA)
        assert denoised.shape == (4, 1, 2, 2) and denoised.dtype == dtype
        slope = ALPHA / (ALPHA**2 + SIGMA**2)
        assert denoised[:, 0, 0, 0].tolist() == pytest.approx(slope.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariances": torch.eye(3).expand(2, 3, 3)}, r"covariances must be \[2, 2, 2\], got \(2, 3, 3\)"),
        ({"covariances": -torch.eye(2).expand(2, 2, 2)}, "must be positive definite, got smallest eigenvalue -1"),
        ({"log_weights": torch.zeros(3)}, r"log_weights must be \[2\] to match the means, got \(3,\)"),
        ({"event_shape": (3,)}, r"event_shape \(3,\) does not have the 2 dimensions of the means"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    given = {"means": torch.zeros(2, 2), "covariances": torch.eye(2).expand(2, 2, 2)} | options
    with pytest.raises(ValueError, match=message):
        UntiedMixtureDenoiser(**given)
