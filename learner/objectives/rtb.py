r"""`rtb`: relative trajectory balance with a learned log-partition (Venkatraman et al. 2024, arXiv 2405.20971, eq. 9).

    delta(tau) = log Z(y) + sum_k [log q(s_k+1 | s_k, y) - log p(s_k+1 | s_k)] - beta log p(y | x)

Zero on every trajectory if and only if q is the posterior. log Z: `learner.log_partition`.
"""

from __future__ import annotations

from torch import Tensor

from learner.batch import PathBatch
from learner.log_partition import LogPartition
from learner.loss import Loss
from learner.objectives.base import Balance

__all__ = ["RelativeTrajectoryBalance"]


class RelativeTrajectoryBalance(Balance):
    """delta as it is."""

    def __init__(self, shape: Loss, log_partition: LogPartition) -> None:
        super().__init__(shape)
        self.log_partition = log_partition

    def known(self, batch: PathBatch) -> Tensor:
        """See `RatioObjective.known`."""
        return self.log_partition.known(batch)

    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """See `Balance.residual`."""
        residual: Tensor = self.log_partition(batch) + log_ratio - beta * batch.log_likelihood.double()
        return residual
