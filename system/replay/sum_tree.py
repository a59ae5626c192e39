"""A sum tree: draws leaf i with probability m_i / sum_j m_j in O(log N), all in numpy.

Every inner node holds the sum of its `branching` children. A target t in [0, total) is found by descending: at each
node take the child j with  c_{j-1} <= t < c_j,  c being the cumulative masses of the children, and go on with
t - c_{j-1}. Wide nodes (8 to 16 children) suit vectorised numpy several times better than a binary tree does, and the
top of the tree, once it is short enough, is one flat cumulative sum. Inner nodes are always sums anew, never
increments, so they do not drift from the leaves (Schaul et al. 2016, appendix B.2.1, with a wider fan-out).
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SumTree"]


class SumTree:
    """Masses of `capacity` leaves, all zero at first."""

    def __init__(self, capacity: int, branching: int = 16, flat_width: int = 4096) -> None:
        if capacity < 1 or branching < 2:
            raise ValueError(f"a sum tree needs capacity >= 1 and branching >= 2, got {capacity} and {branching}")
        self.capacity = capacity
        self._branching = branching
        self._levels: list[NDArray[np.float64]] = []
        width = capacity
        while True:
            width = -(-width // branching) * branching
            self._levels.append(np.zeros(width))
            if width <= max(flat_width, branching):
                break
            width //= branching
        self._maxima = [np.zeros_like(level) for level in self._levels[1:]]  # of the leaves below each inner node
        self._top: NDArray[np.float64] | None = None
        # No sum of leaves can overflow while each is at most this.
        self.largest_mass = sys.float_info.max / len(self._levels[0])

    @property
    def total(self) -> float:
        """Sum of all masses."""
        return float(self._top_cumulative()[-1])

    @property
    def maximum(self) -> float:
        """Largest mass; over the top of the tree only."""
        return float([*self._levels[:1], *self._maxima][-1].max())

    def get(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Masses of the leaves at `indices`."""
        leaves: NDArray[np.float64] = self._levels[0][self._checked_indices(indices)]
        return leaves

    def leaves(self) -> NDArray[np.float64]:
        """[capacity] a copy of all masses."""
        return self._levels[0][: self.capacity].copy()

    def set(self, indices: NDArray[np.integer], values: ArrayLike) -> None:
        """Give the leaves at `indices` the masses `values`; where an index is repeated the last value wins."""
        indices = self._checked_indices(indices)
        masses = np.broadcast_to(self._checked_masses(values), indices.shape)
        if not len(indices):
            return
        # numpy leaves open which of several assignments to one element wins, hence the explicit choice.
        nodes, from_the_end = np.unique(indices[::-1], return_index=True)
        self._levels[0][nodes] = masses[::-1][from_the_end]
        largest = self._levels[0]
        for children, parents, maxima in zip(self._levels, self._levels[1:], self._maxima, strict=False):
            nodes = nodes // self._branching
            nodes = nodes[np.concatenate([[True], nodes[1:] != nodes[:-1]])]
            parents[nodes] = children.reshape(-1, self._branching)[nodes].sum(axis=1)
            maxima[nodes] = largest.reshape(-1, self._branching)[nodes].max(axis=1)
            largest = maxima
        self._top = None

    def fill(self, values: ArrayLike) -> None:
        """Give the first leaves the masses `values`, all others zero, and sum every inner node anew."""
        masses = self._checked_masses(values)
        if masses.ndim != 1 or len(masses) > self.capacity:
            raise ValueError(f"fill takes at most {self.capacity} masses in one dimension, got {masses.shape}")
        self._levels[0][:] = 0.0
        self._levels[0][: len(masses)] = masses
        self._sum_inner_nodes()

    def scale(self, factor: float) -> None:
        """Multiply all masses by `factor`; O(N)."""
        if not (np.isfinite(factor) and factor >= 0):
            raise ValueError(f"factor must be finite and not negative, got {factor}")
        if factor > 1 and self.maximum > self.largest_mass / factor:
            raise ValueError(f"a factor of {factor} takes the largest mass {self.maximum} over {self.largest_mass}")
        self._levels[0] *= factor
        self._sum_inner_nodes()

    def sample(self, targets: ArrayLike) -> NDArray[np.int64]:
        """Leaf under each of the `targets` in [0, total); never a leaf of zero mass."""
        remaining = np.atleast_1d(np.asarray(targets, dtype=np.float64))
        top = self._top_cumulative()
        total = top[-1]
        if not total > 0:
            raise ValueError("cannot sample from a sum tree whose total mass is zero")
        if not np.all((remaining >= 0) & (remaining <= total)):
            raise ValueError(f"targets must lie in [0, {total}), got {remaining.min()} to {remaining.max()}")
        # A target strictly below the cumulative mass cannot fall behind the last leaf that has any. Rounding can
        # bring it up to there, here (u * total == total) and after every subtraction below.
        remaining = np.minimum(remaining, np.nextafter(total, 0.0))
        node = np.searchsorted(top, remaining, side="right")
        remaining = remaining - np.where(node > 0, top[node - 1], 0.0)
        rows = np.arange(len(remaining))
        for level in reversed(self._levels[:-1]):
            cumulative = level.reshape(-1, self._branching)[node].cumsum(axis=1)
            remaining = np.minimum(remaining, np.nextafter(cumulative[:, -1], 0.0))
            child = np.count_nonzero(cumulative <= remaining[:, None], axis=1)
            remaining = remaining - np.where(child > 0, cumulative[rows, child - 1], 0.0)
            node = node * self._branching + child
        return node.astype(np.int64)

    def check_valid(self) -> tuple[bool, str]:
        """Whether all invariants hold, and if not, which one is broken."""
        leaves = self._levels[0]
        if not np.all(np.isfinite(leaves) & (leaves >= 0)):
            return False, "a leaf is negative or not finite"
        if np.any(leaves[self.capacity :] != 0):
            return False, "a padding leaf has mass"
        for depth, (children, parents) in enumerate(zip(self._levels, self._levels[1:], strict=False)):
            sums = children.reshape(-1, self._branching).sum(axis=1)
            if not np.array_equal(parents[: len(sums)], sums) or np.any(parents[len(sums) :] != 0):
                return False, f"a node of level {depth + 1} is not the sum of its children"
        if self.maximum != leaves.max():
            return False, f"the maximum is kept as {self.maximum} and is {leaves.max()}"
        if self._top is not None and not np.array_equal(self._top, np.cumsum(self._levels[-1])):
            return False, "the cumulative sum of the top level is stale"
        return True, ""

    def _top_cumulative(self) -> NDArray[np.float64]:
        if self._top is None:
            self._top = np.cumsum(self._levels[-1])
        return self._top

    def _sum_inner_nodes(self) -> None:
        largest = self._levels[0]
        for children, parents, maxima in zip(self._levels, self._levels[1:], self._maxima, strict=False):
            sums = children.reshape(-1, self._branching).sum(axis=1)
            parents[: len(sums)] = sums
            maxima[: len(sums)] = largest.reshape(-1, self._branching).max(axis=1)
            largest = maxima
        self._top = None

    def _checked_indices(self, indices: NDArray[np.integer]) -> NDArray[np.integer]:
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.capacity):
            raise ValueError(f"indices must lie in [0, {self.capacity}), got {indices.min()} to {indices.max()}")
        return indices

    def _checked_masses(self, values: ArrayLike) -> NDArray[np.float64]:
        masses = np.asarray(values, dtype=np.float64)
        # Written so that a NaN, which compares false with everything, is refused too.
        wrong = ~((masses >= 0) & (masses <= self.largest_mass))
        if wrong.any():
            raise ValueError(f"masses must be finite, >= 0 and <= {self.largest_mass:.3g}, got {masses[wrong].flat[0]}")
        return masses
