"""What path search redraws of a path: from which index k on, and which part of x, by what carried paths far."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SuffixChoice", "window", "window_sizes"]

MEMORY = 0.95  # what a sweep's experience counts for one sweep later
UNIFORM_SHARE = 0.3
FRACTIONS = (1.0, 1 / 4, 1 / 16, 1 / 64)  # of x


def window_sizes(event_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Sides of the windows that hold FRACTIONS of x of `event_shape`: all of it, then ever smaller parts.

    Of an image [C, H, W] a window is a rectangle with all channels, otherwise a box along every axis.
    """
    axes = event_shape[-2:] if len(event_shape) == 3 else event_shape
    whole = event_shape[: len(event_shape) - len(axes)]
    sides = [(*whole, *(max(1, round(side * share ** (1 / len(axes)))) for side in axes)) for share in FRACTIONS]
    return list(dict.fromkeys(sides))  # without repetitions, where x is small


def window(
    event_shape: tuple[int, ...], sides: tuple[int, ...], count: int, generator: torch.Generator | None
) -> Tensor:
    """[count, *D] bool, true in a window of `sides` at a place drawn for each row; it goes on at the opposite edge."""
    inside = torch.ones(count, *event_shape, dtype=torch.bool)
    for axis, (length, side) in enumerate(zip(event_shape, sides, strict=True)):
        place = torch.randint(length, (count, 1), generator=generator)
        along = (torch.arange(length) - place) % length < side
        inside &= along.reshape(count, *(length if other == axis else 1 for other in range(len(event_shape))))
    return inside


class SuffixChoice:
    """Probabilities of (size of the window, k) for several kernels, uniform at first."""

    def __init__(self, kernels: int, sizes: int, steps: int) -> None:
        self.tried = torch.zeros(kernels, sizes, steps, dtype=torch.float64)
        """[kernels, sizes, T] how often each was tried, recent sweeps counting most."""
        self.gained = torch.zeros(kernels, sizes, steps, dtype=torch.float64)
        """[kernels, sizes, T] squared distance that x moved per transition redrawn, summed likewise."""

    def probability(self, kernel: int) -> Tensor:
        """[sizes, T], k and then the size given k, each some uniform, the rest by squared distance per transition."""
        sizes, steps = self.tried.shape[1:]
        index = torch.arange(steps, dtype=torch.float64)
        width = max(steps / 20, 0.5)  # neighbours share what they have seen
        near = torch.exp(-0.5 * ((index[:, None] - index) / width).square())
        tried, gained = self.tried[kernel] @ near, self.gained[kernel] @ near
        rate = gained / tried.clamp_min(1e-3)
        rate = torch.where(tried > 1e-3, rate, rate.max())  # what was never tried is taken for as good as the best
        rate = rate / rate.max().clamp_min(1e-300) + 1e-9  # uniform where nothing has moved
        index_share = (1 - UNIFORM_SHARE) * rate.sum(0) / rate.sum() + UNIFORM_SHARE / steps
        size_share = (1 - UNIFORM_SHARE) * rate / rate.sum(0) + UNIFORM_SHARE / sizes
        return index_share * size_share

    def draw(self, kernel: int, generator: torch.Generator | None) -> tuple[int, int]:
        """(size, k) by `probability`."""
        chosen = int(torch.multinomial(self.probability(kernel).flatten(), 1, generator=generator))
        return divmod(chosen, self.tried.shape[2])

    def learn(self, kernel: int, size: int, first: int, moved: float) -> None:
        """Takes in that redraws of `size` from k = `first` on have moved x by `moved`, a mean squared distance."""
        self.tried[kernel] *= MEMORY
        self.gained[kernel] *= MEMORY
        self.tried[kernel, size, first] += 1
        self.gained[kernel, size, first] += moved / (self.tried.shape[2] - first)
