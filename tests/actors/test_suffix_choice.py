"""What path search redraws: windows of x, and the choice by what carried paths far."""

import numpy as np
import pytest
import torch

from actors.suffix_choice import SuffixChoice, window, window_sizes


def test_windows_hold_ever_smaller_parts_of_x_without_repetitions():
    assert window_sizes((64,)) == [(64,), (16,), (4,), (1,)]
    assert window_sizes((2,)) == [(2,), (1,)]
    assert window_sizes((3, 16, 16)) == [(3, 16, 16), (3, 8, 8), (3, 4, 4), (3, 2, 2)]
    assert window_sizes((1,)) == [(1,)]


def test_a_window_is_a_box_anywhere_that_goes_on_at_the_opposite_edge(generator):
    inside = window((2, 5, 4), (2, 2, 3), 4_000, generator)
    assert inside.shape == (4_000, 2, 5, 4)
    assert inside.flatten(1).sum(1).unique().tolist() == [12]
    assert bool((inside[:, 0] == inside[:, 1]).all())  # of an image all channels
    assert inside.double().mean(0)[0].numpy() == pytest.approx(np.full((5, 4), 0.4 * 0.75), abs=0.03)
    across = inside[:, 0, 0].any(1) & inside[:, 0, 4].any(1)  # first and last row
    assert float(across.double().mean()) == pytest.approx(0.2, abs=0.03)


def test_the_choice_is_uniform_at_first_and_prefers_what_moved_paths():
    choice = SuffixChoice(kernels=2, sizes=3, steps=4)
    assert choice.probability(0).numpy() == pytest.approx(np.full((3, 4), 1 / 12), abs=1e-12)
    for size in range(3):
        for first in range(4):
            choice.learn(0, size, first, 8.0 if (size, first) == (1, 2) else 0.1)
    share = choice.probability(0)
    assert float(share.sum()) == pytest.approx(1.0, abs=1e-12)
    assert divmod(int(share.argmax()), 4) == (1, 2)
    assert float(share.min()) > 0.005  # everything keeps being tried
    assert choice.probability(1).numpy() == pytest.approx(np.full((3, 4), 1 / 12), abs=1e-12)


def test_a_move_is_drawn_by_its_probability(generator):
    choice = SuffixChoice(kernels=1, sizes=2, steps=5)
    for size in range(2):
        for first in range(5):
            choice.learn(0, size, first, 1.0 + size)
    counts = torch.zeros(2, 5, dtype=torch.float64)
    for _ in range(4_000):
        counts[choice.draw(0, generator)] += 1
    expected = 4_000 * choice.probability(0)
    assert float(((counts - expected).square() / expected).sum()) < 28  # 99.9 % of chi-square with 9 degrees


def test_what_moved_nothing_leaves_the_choice_uniform():
    choice = SuffixChoice(kernels=1, sizes=2, steps=3)
    for size in range(2):
        for first in range(3):
            choice.learn(0, size, first, 0.0)
    assert choice.probability(0).numpy() == pytest.approx(np.full((2, 3), 1 / 6), abs=1e-9)
