"""Residuals against numbers worked out by hand, the exact posterior, autograd and scipy's minimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from actors.rollout import rollout
from diffusion.path import denoise_path, path_log_ratio
from diffusion.posterior import ControlPosterior
from learner.loss import residual_loss
from learner.objectives import OBJECTIVES, rtb, vargrad

LOG_RATIO = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
LOG_LIKELIHOOD = torch.tensor([-3.0, -1.0, 2.0, -2.0], dtype=torch.float64)
GROUP = torch.tensor([0, 1, 0, 1])
NO_LOG_Z = torch.zeros(2, dtype=torch.float64)


def _paths(problem, origin, count):
    """[count, T+1, D] float64 states of a kind of actor."""
    if origin == "exact":
        return problem.exact[0].sample_path(count, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    inflation = 1.5 if origin == "noise-inflated" else 1.0
    control = None if origin == "prior" else posterior.control
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(count, dtype=torch.long)
    return rollout(problem, control, rows, inflation=inflation, generator=generator).states.double()


def _exact_ingredients(problem, states):
    """log q - log p of whole paths under the exact posterior, log p(y | x), and the exact log Z, float64."""
    exact, measurement = problem.exact[0], problem.measurements.double().expand(len(states), -1)
    log_ratio = path_log_ratio(exact, states, denoise_path(problem.prior, states), measurement).sum(1)
    group = torch.zeros(len(states), dtype=torch.long)
    log_likelihood = problem.log_likelihood(states[:, -1], group)
    return log_ratio, log_likelihood, torch.tensor([exact.log_partition], dtype=torch.float64), group


def test_rtb_is_log_z_plus_log_ratio_minus_tempered_log_likelihood_by_hand():
    log_partition = torch.tensor([10.0, 20.0], dtype=torch.float64)
    assert rtb(LOG_RATIO, LOG_LIKELIHOOD, log_partition, GROUP).tolist() == [14.0, 19.0, 8.5, 26.0]
    assert rtb(LOG_RATIO, LOG_LIKELIHOOD, log_partition, GROUP, beta=0.5).tolist() == [12.5, 18.5, 9.5, 25.0]


def test_vargrad_subtracts_the_mean_of_its_own_measurement_by_hand():
    # delta = 4, -1, -1.5, 6; means 1.25 and 2.5.
    assert vargrad(LOG_RATIO, LOG_LIKELIHOOD, NO_LOG_Z, GROUP).tolist() == [2.75, -3.5, -2.75, 3.5]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("huber", [None, 1.0])
def test_a_residual_is_one_float64_number_a_trajectory_never_a_matrix(name, huber):
    residual = OBJECTIVES[name](LOG_RATIO.float(), LOG_LIKELIHOOD.float(), NO_LOG_Z, GROUP, 1.0, huber)
    assert residual.shape == (4,) and residual.dtype == torch.float64
    with pytest.raises(ValueError, match=r"must be \[B\] each, got \(4,\), \(4, 1\) and \(4,\)"):
        OBJECTIVES[name](LOG_RATIO, LOG_LIKELIHOOD[:, None], NO_LOG_Z, GROUP, 1.0, huber)


@pytest.mark.parametrize("origin", ["on-policy", "noise-inflated", "prior", "exact"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("huber", [None, 30.0])
def test_the_exact_posterior_has_no_residual_on_paths_of_any_origin(gaussian_problem, origin, name, huber):
    states = _paths(gaussian_problem, origin, 200)
    log_ratio, log_likelihood, log_partition, group = _exact_ingredients(gaussian_problem, states)
    residual = OBJECTIVES[name](log_ratio, log_likelihood, log_partition, group, 1.0, huber)
    assert (log_ratio - log_ratio.mean()).abs().max() > 0.5  # the terms do not vanish one by one
    assert residual.abs().max() < 1e-9


@pytest.mark.parametrize("origin", ["prior", "exact"])
def test_in_float32_the_exact_posterior_has_a_residual_below_1e_4(gaussian_problem, origin):
    states = _paths(gaussian_problem, origin, 200).float()
    log_ratio, log_likelihood, log_partition, group = _exact_ingredients(gaussian_problem, states)
    assert log_ratio.dtype == torch.float32
    assert rtb(log_ratio, log_likelihood, log_partition, group).abs().max() < 1e-4


def test_the_gradient_of_vargrad_is_that_of_half_the_variance():
    # A published code adds the mean instead of subtracting it; the gradient then has another sign and size.
    free = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    group, zero = torch.zeros(50, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
    parameter = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True)
    (half_variance,) = torch.autograd.grad(0.5 * (features @ parameter - free).var(correction=0), parameter)
    loss = residual_loss(vargrad(features @ parameter, free, zero, group), None).mean()
    (gradient,) = torch.autograd.grad(loss, parameter)
    assert gradient.numpy() == pytest.approx(half_variance.numpy(), rel=1e-12)


def test_log_z_cancels_in_vargrad_measurement_by_measurement():
    shift = torch.tensor([5.0, -70.0], dtype=torch.float64)
    plain = vargrad(LOG_RATIO, LOG_LIKELIHOOD, NO_LOG_Z, GROUP)
    shifted = vargrad(LOG_RATIO, LOG_LIKELIHOOD - shift[GROUP], NO_LOG_Z, GROUP)
    assert shifted.numpy() == pytest.approx(plain.numpy(), abs=1e-12)


@pytest.mark.parametrize("huber", [None, 1.0])
def test_a_measurement_that_is_not_in_the_batch_or_stands_alone_is_no_trouble(huber):
    group, zeros = torch.tensor([2, 2, 0, 2]), torch.zeros(5, dtype=torch.float64)
    residual = vargrad(LOG_RATIO, LOG_LIKELIHOOD, zeros, group, 1.0, huber)
    assert residual[2] == 0.0 and torch.isfinite(residual).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("huber", [0.3, 2.0, 30.0])
def test_the_centre_of_each_measurement_minimises_its_huber_loss(seed, huber):
    random = np.random.default_rng(seed)
    delta = torch.from_numpy(random.standard_t(2, size=60) * 3 + random.normal(0, 20))
    group = torch.from_numpy(random.integers(0, 2, 60))
    centred = vargrad(delta, torch.zeros(60), NO_LOG_Z, group, 1.0, huber)

    for measurement in (0, 1):
        own = delta[group == measurement]
        best = minimize_scalar(lambda c, own=own: float(residual_loss(own - c, huber).sum()), tol=1e-12)
        centre = float((own - centred[group == measurement])[0])
        loss = float(residual_loss(own - centre, huber).sum())
        assert loss == pytest.approx(best.fun, rel=1e-6)
        assert centre == pytest.approx(best.x, abs=0.02 * float(own.std()))


def test_one_outlier_of_a_million_nats_moves_the_huber_centre_by_less_than_a_nat_but_the_mean_by_thousands():
    delta = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta[0] = 1e6
    zeros, group, one = torch.zeros(64), torch.zeros(64, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
    robust = delta - vargrad(delta, zeros, one, group, 1.0, 30.0)
    mean = delta - vargrad(delta, zeros, one, group)
    assert abs(float(robust[0]) - float(delta[1:].mean())) < 0.6  # huber 30 pulls by 30 / 63 = 0.48
    assert float(mean[0]) == pytest.approx(1e6 / 64, rel=0.01)


def test_huber_beyond_every_residual_is_the_mean():
    plain = vargrad(LOG_RATIO, LOG_LIKELIHOOD, NO_LOG_Z, GROUP)
    assert vargrad(LOG_RATIO, LOG_LIKELIHOOD, NO_LOG_Z, GROUP, 1.0, 1e3).numpy() == pytest.approx(plain.numpy())


def test_vargrad_is_rtb_at_the_log_z_that_its_batch_prefers():
    residual = vargrad(LOG_RATIO, LOG_LIKELIHOOD, NO_LOG_Z, GROUP, 0.5)
    log_partition = torch.stack([-(LOG_RATIO - 0.5 * LOG_LIKELIHOOD)[group == GROUP].mean() for group in (0, 1)])
    assert residual.numpy() == pytest.approx(
        rtb(LOG_RATIO, LOG_LIKELIHOOD, log_partition, GROUP, beta=0.5).numpy(), abs=1e-12
    )


def test_with_nearly_half_of_the_batch_far_off_the_huber_centre_still_minimises_the_loss():
    delta = torch.cat([torch.linspace(-3, 3, 33, dtype=torch.float64), torch.full((31,), 1e6, dtype=torch.float64)])
    group = torch.zeros(64, dtype=torch.int64)
    centre = delta - vargrad(delta, torch.zeros(64), torch.zeros(1), group, 1.0, 30.0)
    best = minimize_scalar(lambda c: float(residual_loss(delta - c, 30.0).sum()), bounds=(-10, 1000), method="bounded")
    assert float(centre[0]) == pytest.approx(best.x, abs=0.01)
