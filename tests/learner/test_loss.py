import math

import pytest
import torch

from learner.loss import Loss

RESIDUAL = torch.tensor([-40.0, -3.0, 0.0, 0.5, 31.0], dtype=torch.float64)
SHAPES = [Loss("square"), Loss("huber", 1e-2), Loss("huber", 1e6), Loss("shifted-cosh", 7.0), Loss("clipped", 0.4)]


def test_the_square_is_half_the_residual_squared():
    assert Loss("square")(RESIDUAL).tolist() == [800.0, 4.5, 0.0, 0.125, 480.5]


def test_huber_is_the_square_up_to_c_and_linear_beyond():
    # c = 30: 30 (40 - 15) = 750 and 30 (31 - 15) = 480.
    assert Loss("huber", 30.0)(RESIDUAL).tolist() == [750.0, 4.5, 0.0, 0.125, 480.0]


def test_clipped_is_zero_within_c_and_the_square_less_its_value_at_c_beyond():
    # The published code's c^2 = 0.1 has half of max(r^2 - 0.1, 0).
    assert Loss("clipped", 3.0)(RESIDUAL).tolist() == [795.5, 0.0, 0.0, 0.0, 476.0]


def test_the_shifted_cosh_by_hand():
    # c = 10: 100 (cosh(4) - 1), 100 (cosh(0.3) - 1), ...
    expected = [100 * (math.cosh(value / 10) - 1) for value in (40, 3, 0, 0.5, 31)]
    assert Loss("shifted-cosh", 10.0)(RESIDUAL).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [Loss("square"), Loss("huber", 0.5), Loss("shifted-cosh", 0.5)])
def test_near_zero_all_but_clipped_are_half_the_square(loss):
    small = torch.linspace(-1e-3, 1e-3, 11, dtype=torch.float64)
    assert loss(small).tolist() == pytest.approx((0.5 * small.square()).tolist(), rel=1e-5, abs=1e-15)


def test_hubers_derivative_is_the_residual_clipped_at_c():
    leaf = RESIDUAL.clone().requires_grad_(True)
    Loss("huber", 2.0)(leaf).sum().backward()
    assert leaf.grad.tolist() == [-2.0, -2.0, 0.0, 0.5, 2.0]


@pytest.mark.parametrize("loss", SHAPES)
def test_every_loss_is_zero_at_a_residual_of_zero_and_positive_elsewhere(loss):
    value = loss(RESIDUAL)
    assert value.shape == (5,) and value[2] == 0 and (value[[0, 1, 3, 4]] > 0).all()


@pytest.mark.parametrize("loss", SHAPES)
def test_an_infinite_residual_does_not_pass_for_a_finite_loss(loss):
    assert math.isinf(loss(torch.tensor([math.inf])))
