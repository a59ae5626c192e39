r"""`rtb`: relative trajectory balance with a learned log-partition (Venkatraman et al. 2024, arXiv 2405.20971, eq. 9).

    delta(tau) = log Z(y) + sum_k [log q(s_k+1 | s_k, y) - log p(s_k+1 | s_k)] - beta log p(y | x)

Zero on every trajectory if and only if q is the posterior. log Z is one learned number per measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.batch import PathBatch
from learner.loss import Loss
from learner.objectives.base import Balance

__all__ = ["RelativeTrajectoryBalance"]


class RelativeTrajectoryBalance(Balance):
    """delta as it is."""

    def __init__(self, shape: Loss, measurements: int) -> None:
        """`measurements` is their number M."""
        super().__init__(shape)
        self.log_partition = nn.Parameter(torch.zeros(measurements, dtype=torch.float64))

    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """See `Balance.residual`."""
        return self.log_partition[batch.group] + log_ratio - beta * batch.log_likelihood.double()
