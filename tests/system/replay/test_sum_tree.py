import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from system.replay.sum_tree import SumTree

masses = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-12, 1e12), st.sampled_from([5e-324, 1e-300, 1e300])), min_size=1, max_size=90
)
shapes = st.sampled_from([(2, 1), (3, 1), (4, 16), (16, 1), (16, 4096)])


@given(masses, shapes, st.integers(0, 2**32 - 1))
def test_targets_find_the_leaf_that_a_flat_cumulative_sum_finds(values, shape, seed):
    tree = SumTree(len(values), branching=shape[0], flat_width=shape[1])
    tree.set(np.arange(len(values)), values)
    assert tree.check_valid() == (True, "")
    assert tree.total == pytest.approx(sum(values), rel=1e-12)
    if tree.total == 0:
        return
    targets = np.random.default_rng(seed).random(200) * tree.total
    found = tree.sample(targets)
    cumulative = np.cumsum(values)
    slack = 1e-12 * tree.total
    assert np.all(targets >= np.concatenate([[0.0], cumulative])[found] - slack)
    assert np.all(targets <= cumulative[found] + slack)


@given(masses, shapes)
def test_no_leaf_without_mass_is_found_at_any_rounding_edge(values, shape):
    tree = SumTree(len(values), branching=shape[0], flat_width=shape[1])
    tree.set(np.arange(len(values)), values)
    if tree.total == 0:
        return
    edges = np.cumsum(values)
    targets = np.concatenate([[0.0, tree.total], edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf)])
    found = tree.sample(np.clip(targets, 0.0, tree.total))
    assert np.all(tree.get(found) > 0)


def test_targets_within_four_roundings_of_a_node_boundary_find_a_leaf_with_mass_in_1000_random_trees():
    generator = np.random.default_rng(2)
    for _ in range(1000):
        values = 10 ** generator.uniform(-6, 6, size=64) * (generator.random(64) < 0.5)
        values[[0, 20, 40, 60]] = 1.0, 0.1, 0.7, 1e-3
        values[[15, 31, 47, 63]] = 0.0  # every inner node ends in a leaf without mass
        tree = SumTree(64, branching=16, flat_width=1)
        tree.fill(values)
        boundaries = np.cumsum(tree._levels[1])[:4]
        targets = (boundaries[:, None] + np.arange(-4, 5) * np.spacing(boundaries)[:, None]).ravel()
        found = tree.sample(targets[targets <= tree.total])
        assert np.all(tree.get(found) > 0)


@given(st.integers(1, 300), shapes, st.data())
def test_any_sequence_of_sets_leaves_the_tree_a_plain_array_with_sums(capacity, shape, data):
    tree = SumTree(capacity, branching=shape[0], flat_width=shape[1])
    flat = np.zeros(capacity)
    for _ in range(data.draw(st.integers(1, 4))):
        writes = data.draw(
            st.lists(st.tuples(st.integers(0, capacity - 1), st.floats(0, 1e6)), max_size=40), label="writes"
        )
        for index, value in writes:  # one by one, so that the last of two writes to one leaf wins
            flat[index] = value
        tree.set(np.array([w[0] for w in writes], dtype=np.int64), [w[1] for w in writes])
        assert tree.check_valid() == (True, "")
        assert np.array_equal(tree.leaves(), flat)
        assert tree.maximum == flat.max()


def test_the_last_of_three_values_for_a_repeated_index_wins():
    tree = SumTree(40, branching=4, flat_width=1)
    tree.set(np.array([7, 3, 7, 7]), [1.0, 2.0, 5.0, 0.5])
    assert tree.get(np.array([7, 3])).tolist() == [0.5, 2.0]
    assert tree.total == 2.5


def test_draw_frequencies_of_ten_thousand_leaves_pass_chi_square():
    generator = np.random.default_rng(0)
    values = generator.gamma(0.5, size=10_000)
    values[::7] = 0.0
    tree = SumTree(10_000)
    tree.fill(values)
    found = tree.sample(generator.random(400_000) * tree.total)
    observed = np.bincount(found % 50, minlength=50)  # pooled into 50 cells, each of 200 leaves
    expected = np.bincount(np.arange(10_000) % 50, values) / values.sum() * 400_000
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # The same test sees one cell of 50 being off by a tenth.
    expected[0] *= 1.10
    assert stats.chisquare(observed, expected / expected.sum() * 400_000).pvalue < 1e-3


def test_an_incremental_tree_and_one_filled_at_once_are_equal_to_the_last_bit():
    generator = np.random.default_rng(1)
    incremental, filled = SumTree(5000, flat_width=1), SumTree(5000, flat_width=1)
    for _ in range(100):
        incremental.set(generator.integers(5000, size=64), generator.random(64))
    filled.fill(incremental.leaves())
    targets = generator.random(1000) * filled.total
    assert incremental.total == filled.total
    assert np.array_equal(incremental.sample(targets), filled.sample(targets))


def test_scale_multiplies_every_mass_and_the_total_by_a_quarter():
    tree = SumTree(1000, flat_width=1)
    tree.fill(np.arange(1000.0))
    tree.scale(0.25)
    assert tree.total == 999 * 1000 / 2 / 4
    assert tree.get(np.array([8])) == 2.0
    assert tree.check_valid() == (True, "")
    with pytest.raises(ValueError, match="over"):
        tree.scale(1e308)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), 1e308])
def test_masses_that_are_negative_or_not_finite_or_could_overflow_are_refused_and_change_nothing(wrong):
    tree = SumTree(100)
    tree.fill(np.ones(100))
    for write in (lambda: tree.set(np.array([3, 4]), [2.0, wrong]), lambda: tree.fill([2.0, wrong])):
        with pytest.raises(ValueError, match=r"masses must be finite, >= 0 and <= .*, got"):
            write()
    assert tree.total == 100


def test_targets_outside_the_total_and_an_empty_tree_are_refused():
    tree = SumTree(10)
    with pytest.raises(ValueError, match="total mass is zero"):
        tree.sample([0.0])
    tree.fill([1.0, 2.0])
    for wrong in (-1e-9, 3.1, float("nan")):
        with pytest.raises(ValueError, match=r"targets must lie in \[0, 3"):
            tree.sample([wrong])
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 10\), got -1 to 0"):
        tree.set(np.array([-1, 0]), 1.0)


def test_check_valid_names_a_node_that_is_off_by_one_part_in_a_million():
    tree = SumTree(1000, flat_width=1)
    tree.fill(np.ones(1000))
    tree._levels[1][3] *= 1 + 1e-6
    assert tree.check_valid() == (False, "a node of level 1 is not the sum of its children")
