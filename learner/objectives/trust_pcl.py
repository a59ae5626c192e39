r"""`trust_pcl`: path consistency learning of a policy with a KL penalty (Nachum et al. 2018, arXiv 1707.01891).

    delta(tau) = V(y) + alpha sum_k [log q(s_k+1 | s_k, y) - log p(s_k+1 | s_k)] - log p(y | x),    alpha = 1 / beta,

over whole trajectories, with the soft value V of the start learned per measurement. With V = alpha log Z this is alpha
times the residual of relative trajectory balance, and the squared loss alpha^2 times (Deleu et al. 2025, arXiv
2509.01632): the two are one method, in units of reward here and of log-probability there.
"""

from __future__ import annotations

from torch import Tensor

from learner.batch import PathBatch
from learner.log_partition import LogPartition
from learner.loss import Loss
from learner.objectives.base import Balance

__all__ = ["TrustPCL"]


class TrustPCL(Balance):
    """delta in units of reward."""

    def __init__(self, shape: Loss, value: LogPartition) -> None:
        """`value` is V(y), log Z(y) / beta, which at beta = 1 is log Z(y)."""
        super().__init__(shape)
        self.value = value

    def known(self, batch: PathBatch) -> Tensor:
        """See `RatioObjective.known`."""
        return self.value.known(batch)

    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """See `Balance.residual`."""
        residual: Tensor = self.value(batch) + log_ratio / beta - batch.log_likelihood.double()
        return residual
