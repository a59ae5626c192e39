import math

import pytest
import torch

from evaluation.mixing import nested_r_hat, population_effective_sample_size


def test_independent_draws_are_worth_their_number(generator):
    draws = torch.randn(4, 500, 200, generator=generator)
    assert population_effective_sample_size(draws) == pytest.approx(2_000, rel=0.15)
    # B / W is chi^2_3 / 3 / 500: its mean gives R^ - 1 = 1 / 1000.
    assert float(nested_r_hat(draws).mean()) - 1 == pytest.approx(1e-3, rel=0.15)


def test_draws_that_depend_on_each_other_are_worth_fewer(generator):
    """AR(1) of coefficient 0.8: the variance of a mean is (1 + 0.8) / (1 - 0.8) = 9 times that of independent draws."""
    noise = torch.randn(4, 1_000, 1_000, generator=generator, dtype=torch.float64)
    chain = [noise[:, 0]]
    for index in range(1, noise.shape[1]):
        chain.append(0.8 * chain[-1] + 0.6 * noise[:, index])
    assert population_effective_sample_size(torch.stack(chain, 1)) == pytest.approx(4 * 1_000 / 9, rel=0.1)


def test_populations_that_disagree_about_a_mode_are_seen(generator):
    mode = (torch.rand(4, 10_000, 1, generator=generator) < torch.tensor([0.3, 0.3, 0.5, 0.5])[:, None, None]).double()
    assert float(nested_r_hat(mode)) == pytest.approx(math.sqrt(1 + 0.04 / 3 / 0.23), abs=0.005)
    assert population_effective_sample_size(mode) == pytest.approx(4 * 0.23 / (0.04 / 3), rel=0.2)


def test_what_never_varies_is_no_obstacle_but_a_constant_that_differs_is():
    draws = torch.zeros(3, 5, 2)
    draws[1, :, 1] = 1.0
    assert nested_r_hat(draws).tolist() == [1.0, math.inf]


@pytest.mark.parametrize("shape", [(1, 5, 2), (3, 1, 2), (3, 5)])
def test_one_population_or_one_draw_cannot_tell(shape):
    with pytest.raises(ValueError, match="P >= 2 populations"):
        nested_r_hat(torch.zeros(shape))
