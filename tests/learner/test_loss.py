import math

import pytest
import torch

from learner.loss import batch_loss, residual_loss
from learner.objectives import OBJECTIVES

RESIDUAL = torch.tensor([-40.0, -3.0, 0.0, 0.5, 31.0], dtype=torch.float64)


def test_the_square_is_half_the_residual_squared():
    assert residual_loss(RESIDUAL, None).tolist() == [800.0, 4.5, 0.0, 0.125, 480.5]


def test_huber_is_the_square_up_to_c_and_linear_beyond():
    # c = 30: 30 (40 - 15) = 750 and 30 (31 - 15) = 480.
    assert residual_loss(RESIDUAL, 30.0).tolist() == [750.0, 4.5, 0.0, 0.125, 480.0]


def test_hubers_derivative_is_the_residual_clipped_at_c():
    leaf = RESIDUAL.clone().requires_grad_(True)
    residual_loss(leaf, 2.0).sum().backward()
    assert leaf.grad.tolist() == [-2.0, -2.0, 0.0, 0.5, 2.0]


@pytest.mark.parametrize("huber", [None, 1e-2, 1e6])
def test_every_loss_is_zero_at_a_residual_of_zero_and_positive_elsewhere(huber):
    loss = residual_loss(RESIDUAL, huber)
    assert loss.shape == (5,) and loss[2] == 0 and (loss[[0, 1, 3, 4]] > 0).all()


def test_an_infinite_residual_does_not_pass_for_a_finite_loss():
    assert math.isinf(residual_loss(torch.tensor([math.inf]), 30.0)) and math.isinf(
        residual_loss(torch.tensor([math.inf]), None)
    )


LOG_RATIO = torch.tensor([1.0, -2.0, 0.5, 4.0, 7.0], dtype=torch.float64)
LOG_LIKELIHOOD = torch.tensor([-3.0, -1.0, 2.0, -2.0, 1.0])
LOG_PARTITION = torch.tensor([5.0, -7.0], dtype=torch.float64)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("huber", [None, 2.0])
def test_trajectories_with_measurements_of_their_own_leave_loss_and_gradient_of_the_others_alone(name, huber):
    group = torch.tensor([0, -1, 1, 0, -1])
    results = []
    for rows in (torch.arange(5), torch.tensor([0, 2, 3])):
        log_ratio = LOG_RATIO[rows].clone().requires_grad_(True)
        value, residual = batch_loss(
            OBJECTIVES[name], log_ratio, LOG_LIKELIHOOD[rows], LOG_PARTITION, group[rows], 0.5, huber
        )
        value.backward()
        results.append((value.item(), residual.detach(), log_ratio.grad))
    (value, residual, gradient), (alone, expected, reference) = results
    assert value == alone > 0
    assert torch.equal(residual[[0, 2, 3]], expected) and torch.equal(gradient[[0, 2, 3]], reference)
    assert gradient[[1, 4]].tolist() == [0.0, 0.0]
    # Minus the log-weights, -2 + 1 = -1 and 7 - 1 = 6, about their mean, at any reward temperature.
    assert residual[[1, 4]].tolist() == [-3.5, 3.5]


def test_a_batch_of_nothing_else_has_no_loss_and_no_gradient():
    log_ratio = LOG_RATIO.clone().requires_grad_(True)
    group = torch.full((5,), -1)
    value, residual = batch_loss(OBJECTIVES["vargrad"], log_ratio, LOG_LIKELIHOOD, LOG_PARTITION, group, 1.0, 30.0)
    value.backward()
    assert value.item() == 0.0 and not log_ratio.grad.any()
    expected = LOG_RATIO - LOG_LIKELIHOOD
    assert residual.tolist() == pytest.approx((expected - expected.mean()).tolist())
