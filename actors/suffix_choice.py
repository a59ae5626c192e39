"""Where path search redraws from: an index k per kernel, chosen by what carried paths furthest for its cost."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SuffixChoice"]

MEMORY = 0.95  # what a sweep's experience counts for one sweep later
UNIFORM_SHARE = 0.2  # of the choice; with it every k keeps being tried


class SuffixChoice:
    """Probabilities of k for several kernels, uniform at first."""

    def __init__(self, kernels: int, steps: int) -> None:
        self.tried = torch.zeros(kernels, steps, dtype=torch.float64)
        """[kernels, T] how often each k was tried, recent sweeps counting most."""
        self.gained = torch.zeros(kernels, steps, dtype=torch.float64)
        """[kernels, T] squared distance that x moved per transition redrawn, summed likewise."""

    def probability(self, kernel: int) -> Tensor:
        """[T] of every k: some uniform, the rest by squared distance moved per transition."""
        steps = self.tried.shape[1]
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
        index = torch.arange(steps, dtype=torch.float64)
        width = max(steps / 20, 0.5)  # neighbours share what they have seen
        near = torch.exp(-0.5 * ((index[:, None] - index) / width).square())
        tried, gained = near @ self.tried[kernel], near @ self.gained[kernel]
        rate = gained / tried.clamp_min(1e-3)
        rate = torch.where(tried > 1e-3, rate, rate.max())  # what was never tried is taken for as good as the best
        if not float(rate.sum()) > 0:
            return uniform
        return UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * rate / rate.sum()

    def learn(self, kernel: int, first: int, moved: float) -> None:
        """Takes in that suffixes from k = `first` on have moved x by `moved`, a mean squared distance."""
        self.tried[kernel] *= MEMORY
        self.gained[kernel] *= MEMORY
        self.tried[kernel, first] += 1
        self.gained[kernel, first] += moved / (self.tried.shape[1] - first)
