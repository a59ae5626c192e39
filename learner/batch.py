"""What the learner computes with: trajectories as tensors on its device."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["PathBatch"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathBatch:
    """B trajectories with T transitions."""

    states: Tensor
    """[B, T+1, *D]."""
    denoised: Tensor
    """[B, T, *D] the prior's estimates of x."""
    measurement: Tensor
    """[B, *Y]."""
    measurement_id: Tensor
    """[B] row of the problem's measurements, or the negative number of one that was simulated: see `Trajectory`."""
    log_likelihood: Tensor
    """[B] log p(y | x), untempered."""
    log_behaviour_ratio: Tensor
    """[B] sum over k of log b - log p."""
    exact: Tensor
    """[B] bool, whether the path is an exact draw of the posterior at its measurement, by joint simulation."""
    guidance: Tensor | None = None
    """[B, T, *D] the guidance of the problem (`InverseProblem.guide`), where the posterior's form uses it."""

    def __len__(self) -> int:
        return len(self.states)

    @property
    def num_steps(self) -> int:
        """Number of transitions T."""
        return self.states.shape[1] - 1

    @property
    def group(self) -> Tensor:
        """[B] which of the batch's measurements a trajectory is of: 0, 1, and so on in the order of their numbers."""
        _, group = torch.unique(self.measurement_id, return_inverse=True)
        return group

    @property
    def stands_for_posterior(self) -> Tensor:
        """[B] bool, whether the path counts in the denoising term.

        Exact paths do, and those of the problem's measurements: it is up to replay to draw these by importance.
        """
        return self.exact | (self.measurement_id >= 0)

    def take(self, rows: Tensor) -> PathBatch:
        """The trajectories at `rows`, indices or a mask."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PathBatch(**{name: value[rows] for name, value in values.items() if value is not None})
