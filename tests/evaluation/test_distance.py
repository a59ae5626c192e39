import numpy as np
import ot
import pytest
import torch

import envs.problems  # noqa: F401  registers them
from envs.registry import make_problem
from evaluation.distance import class_l1, floor, sliced_wasserstein2, wasserstein2


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sliced_distance_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    a, shift = normal(200, 5), torch.tensor([3.0, 0.0, 0.0, 4.0, 0.0])
    distance = sliced_wasserstein2(a, a + shift, 20_000, torch.Generator().manual_seed(1))
    assert distance == pytest.approx(5 / 5**0.5, rel=0.02)


def test_sliced_distance_of_two_gaussians_of_different_width_is_the_difference_of_the_widths():
    distance = sliced_wasserstein2(normal(20_000, 3), 2 * normal(20_000, 3, seed=1), 64, torch.Generator())
    assert distance == pytest.approx(1.0, abs=0.03)


def test_sliced_distance_agrees_with_pot_on_the_same_directions():
    a, b = normal(150, 4), normal(150, 4, seed=1) * 1.5 + 0.3
    direction = torch.randn(4, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    direction = direction / direction.norm(dim=0)
    expected = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=direction.numpy())
    assert sliced_wasserstein2(a, b, 32, torch.Generator().manual_seed(7)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_exact_distance_agrees_with_pot(dim):
    a, b = normal(250, dim), normal(250, dim, seed=1) + 0.4
    weights = np.full(250, 1 / 250)
    expected = ot.emd2(weights, weights, ot.dist(a.numpy(), b.numpy())) ** 0.5
    assert wasserstein2(a, b) == pytest.approx(expected, rel=1e-7)


def test_exact_distance_of_a_shuffled_shift_is_the_length_of_the_shift():
    a = normal(300, 2, 2)
    b = (a + 0.01)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert wasserstein2(a, b) == pytest.approx(0.02, abs=1e-12)
    assert wasserstein2(a, a.flip(0)) == pytest.approx(0.0, abs=1e-12)


def test_class_l1_is_zero_for_equal_and_two_for_disjoint_probabilities():
    p = torch.tensor([0.5, 0.5, 0.0])
    assert class_l1(p, p) == 0.0
    assert class_l1(p, torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(2.0)
    assert class_l1(p, torch.tensor([0.25, 0.5, 0.25])) == pytest.approx(0.5)


def test_floor_falls_with_the_sample_size_and_is_that_of_two_independent_samples():
    exact = make_problem("gmm-linear", {"dim": 3}).exact[0]

    def distance(a, b):
        return sliced_wasserstein2(a, b, 64, torch.Generator().manual_seed(0))

    small = [floor(distance, exact, 100, torch.Generator().manual_seed(seed)) for seed in range(8)]
    large = [floor(distance, exact, 3_200, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert np.mean(small) / np.mean(large) == pytest.approx(32**0.5, rel=0.4)
    assert min(large) > 0


def test_samples_of_different_size_are_refused():
    for distance in (sliced_wasserstein2, wasserstein2):
        with pytest.raises(ValueError, match=r"of one shape, got \[3, 2\] and \[4, 2\]"):
            distance(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"two vectors of one length, got \[2\] and \[3\]"):
        class_l1(torch.zeros(2), torch.zeros(3))
