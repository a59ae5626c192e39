import pytest
import torch

from envs.forward_operator import LinearOperator, Pixels


def test_a_linear_operator_is_its_matrix_on_the_flattened_x(generator):
    matrix = torch.randn(3, 8, generator=generator)
    operator = LinearOperator(matrix)
    value = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    expected = torch.stack([matrix.double() @ row.flatten() for row in value])
    assert operator.measurement_shape == (3,)
    assert operator(value).numpy() == pytest.approx(expected.numpy(), rel=1e-12)
    assert operator(value.float()).dtype == torch.float32


def test_pixels_gathers_what_its_matrix_selects(generator):
    mask = torch.tensor([[[True, False, True], [False, False, True]]])
    operator = Pixels(mask)
    value = torch.randn(4, 1, 2, 3, generator=generator)
    assert operator.measurement_shape == (3,)
    assert operator(value).tolist() == value[:, mask].tolist()
    assert torch.equal(operator(value), value.flatten(1) @ operator.matrix.float().T)
    assert operator.indices.tolist() == [0, 2, 5]


def test_operators_refuse_what_measures_nothing():
    with pytest.raises(ValueError, match=r"operator matrix must be \[Y, D\], got shape \(3,\)"):
        LinearOperator(torch.zeros(3))
    with pytest.raises(ValueError, match="the mask keeps no pixel; at least one must be measured"):
        Pixels(torch.zeros(2, 2))
