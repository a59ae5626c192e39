from itertools import pairwise

import pytest
import torch

from diffusion.newton import newton_shift


def _symmetric(generator, rank):
    """[5, 4, 4] float64, of each row its own, positive but for what `rank` leaves out."""
    root = torch.randn(5, 4, rank, generator=generator, dtype=torch.float64)
    return root @ root.mT


def _product(matrix):
    return lambda vector: (matrix @ vector[..., None])[..., 0]


@pytest.mark.parametrize("rank", [2, 4])
def test_the_shift_solves_the_equation_of_newton_s_step(generator, rank):
    """Also where x is certain, or y tells nothing, along some directions."""
    covariance, information = _symmetric(generator, rank), _symmetric(generator, rank)
    gradient = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    expected = covariance @ torch.linalg.solve(identity + information @ covariance, gradient[..., None])
    shift = newton_shift(gradient, _product(covariance), _product(information), 20)
    assert shift.numpy() == pytest.approx(expected[..., 0].numpy(), rel=1e-8, abs=1e-9)


def test_every_iteration_goes_uphill(generator):
    """Of g.d - d^T (S^-1 + H) d / 2, which the shift maximises; the last step is as far as it goes."""
    covariance, information = _symmetric(generator, 4), _symmetric(generator, 4)
    gradient = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    precision = torch.linalg.inv(covariance) + information
    heights = []
    for count in range(1, 5):
        shift = newton_shift(gradient, _product(covariance), _product(information), count)
        heights.append((gradient * shift).sum(1) - 0.5 * torch.einsum("ni,nij,nj->n", shift, precision, shift))
    best = 0.5 * torch.einsum("ni,nij,nj->n", gradient, torch.linalg.inv(precision), gradient)
    assert float(heights[0].min()) > 0
    assert all(bool((later >= earlier - 1e-12).all()) for earlier, later in pairwise(heights))
    assert heights[-1].numpy() == pytest.approx(best.numpy(), rel=1e-8)


def test_where_nothing_pulls_nothing_moves():
    shift = newton_shift(torch.zeros(2, 3), lambda vector: vector, lambda vector: 2 * vector)
    assert not shift.any()


def test_a_row_that_is_finished_leaves_the_others_to_go_on(generator):
    """Of five rows the first has a gradient that one step serves, the second none."""
    covariance, information = _symmetric(generator, 4), _symmetric(generator, 4)
    covariance[0], information[0] = torch.eye(4), 2 * torch.eye(4)
    gradient = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    gradient[1] = 0
    identity = torch.eye(4, dtype=torch.float64)
    expected = covariance @ torch.linalg.solve(identity + information @ covariance, gradient[..., None])
    shift = newton_shift(gradient, _product(covariance), _product(information), 20)
    assert shift.numpy() == pytest.approx(expected[..., 0].numpy(), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(
    ("covariance", "information"),
    [((1.0, 1.0), (-2.0, -2.0)), ((1.0, 1.0), (-100.0, 1.0)), ((-1.0, 0.1), (0.0, 0.0)), ((1.0, 1.0), (-1.0, -1.0))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_expansion_has_no_maximum_the_shift_stays_finite_and_small(covariance, information, dtype):
    """A covariance by a network, or the curvature of noise that was learned, may be negative along a direction."""
    first, second = torch.tensor(covariance, dtype=dtype), torch.tensor(information, dtype=dtype)
    gradient = torch.tensor([[1.0, 1.0], [0.3, -0.7], [1.0, 1e-9], [0.0, 0.0]], dtype=dtype)
    shift = newton_shift(gradient, lambda vector: first * vector, lambda vector: second * vector)
    assert bool(torch.isfinite(shift).all()) and float(shift.abs().max()) < 10


def test_it_ends_where_the_residual_is_the_tolerance_of_what_it_was(generator):
    """Of twelve different eigenvalues; with S = I the norm is the plain one."""
    eigenvalues = torch.logspace(-1, 2, 12, dtype=torch.float64)
    gradient = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    asked = []

    def information(vector):
        asked.append(len(vector))
        return eigenvalues * vector

    left = []
    for tolerance in (0.3, 0.03, None):
        asked.clear()
        shift = newton_shift(gradient, lambda vector: vector, information, 16, tolerance)
        residual = (gradient - (1 + eigenvalues) * shift).norm(dim=1) / gradient.norm(dim=1)
        left.append((float(residual.max()), len(asked)))
    assert left[0][0] < 0.3 and left[1][0] < 0.03 and left[2][0] < 1e-4
    assert left[0][0] > 0.03 and left[0][1] < left[1][1] < left[2][1]
