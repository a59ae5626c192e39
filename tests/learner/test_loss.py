import math

import pytest
import torch

from learner.loss import residual_loss

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
