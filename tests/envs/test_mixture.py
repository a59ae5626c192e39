import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from envs.exact.mixture import condition_mixture

MATRIX = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
MEASUREMENT = torch.tensor([0.3], dtype=torch.float64)
NOISE = 0.4


@pytest.fixture
def posterior(plane_mixture):
    means, weights = plane_mixture.means, plane_mixture.log_weights
    return condition_mixture(means, plane_mixture.covariance, weights, MATRIX, NOISE, MEASUREMENT, (2,))


def test_the_posterior_agrees_with_importance_sampling_from_the_prior(plane_mixture, posterior, generator):
    count = 200_000
    draws = plane_mixture.sample(count, generator)
    weights = torch.from_numpy(stats.norm((draws @ MATRIX.T)[:, 0].numpy(), NOISE).pdf(0.3))
    evidence = weights.mean()
    error = float(weights.std() / evidence) / math.sqrt(count)
    assert posterior.log_partition == pytest.approx(float(evidence.log()), abs=4 * error)
    weights = weights / weights.sum()
    mean = weights @ draws
    errors = ((weights**2) @ (draws - mean).square()).sqrt()
    assert bool(((posterior.mean - mean).abs() < 4 * errors).all())
    variance = weights @ (draws - mean).square()
    errors = ((weights**2) @ ((draws - mean).square() - variance).square()).sqrt()
    assert bool(((posterior.variance - variance).abs() < 4 * errors).all())


def test_the_posterior_density_is_prior_times_likelihood_over_evidence_everywhere(plane_mixture, posterior, generator):
    value = 3 * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    components = [
        stats.multivariate_normal(mean.numpy(), posterior.covariance.numpy()).logpdf(value.numpy())
        for mean in posterior.means
    ]
    left = logsumexp(np.stack(components, 1) + posterior.log_weights.numpy(), axis=1)
    likelihood = stats.norm((value @ MATRIX.T)[:, 0].numpy(), NOISE).logpdf(0.3)
    right = plane_mixture.log_prob(value).numpy() + likelihood - posterior.log_partition
    assert left == pytest.approx(right, abs=1e-9)
    assert float(posterior.log_weights.logsumexp(0)) == pytest.approx(0, abs=1e-12)


def test_one_component_is_conditioned_like_the_dense_joint_gaussian_of_x_and_y(generator):
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    covariance, mean = root @ root.T, torch.randn(5, generator=generator, dtype=torch.float64)
    matrix, y = torch.randn(3, 5, generator=generator).double(), torch.randn(3, generator=generator).double()
    mixed = torch.cat([torch.eye(5, dtype=torch.float64), matrix])  # (x, y) = mixed x + (0, noise)
    joint = mixed @ covariance @ mixed.T
    joint[5:, 5:] += 0.7**2 * torch.eye(3, dtype=torch.float64)
    gain = torch.linalg.solve(joint[5:, 5:], joint[5:, :5]).T
    exact = condition_mixture(mean[None], covariance, torch.zeros(1), matrix, 0.7, y, (5,))
    assert exact.mean.numpy() == pytest.approx((mean + gain @ (y - matrix @ mean)).numpy(), abs=1e-10)
    assert exact.covariance.numpy() == pytest.approx((joint[:5, :5] - gain @ joint[5:, :5]).numpy(), abs=1e-10)
    evidence = stats.multivariate_normal((matrix @ mean).numpy(), joint[5:, 5:].numpy()).logpdf(y.numpy())
    assert exact.log_partition == pytest.approx(evidence, rel=1e-10)


def test_samples_have_the_component_frequencies_and_spread(posterior, generator):
    draws = posterior.sample(20_000, generator)
    component = stats.multivariate_normal(cov=posterior.covariance.numpy())
    joint = np.stack([component.logpdf((draws - mean).numpy()) for mean in posterior.means], 1)
    joint += posterior.log_weights.numpy()
    frequencies = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)).mean(0)
    assert frequencies == pytest.approx(posterior.log_weights.exp().numpy(), abs=4 * 0.5 / math.sqrt(20_000))
    mean = posterior.log_weights.exp() @ posterior.means
    between = (posterior.means - mean).T @ ((posterior.means - mean) * posterior.log_weights.exp()[:, None])
    assert draws.T.cov().numpy() == pytest.approx((between + posterior.covariance).numpy(), abs=0.05)


def test_moments_and_samples_have_the_shape_of_x(plane_mixture, generator):
    covariance, weights = plane_mixture.covariance, plane_mixture.log_weights
    exact = condition_mixture(plane_mixture.means, covariance, weights, MATRIX, NOISE, MEASUREMENT, (1, 2))
    assert exact.mean.shape == exact.variance.shape == (1, 2)
    assert exact.sample(3, generator).shape == (3, 1, 2)


def test_unnormalised_weights_do_not_change_the_evidence(plane_mixture, posterior):
    shifted = condition_mixture(
        plane_mixture.means, plane_mixture.covariance, plane_mixture.log_weights + 3, MATRIX, NOISE, MEASUREMENT, (2,)
    )
    assert shifted.log_partition == pytest.approx(posterior.log_partition, abs=1e-12)
    assert shifted.log_weights.numpy() == pytest.approx(posterior.log_weights.numpy(), abs=1e-12)
