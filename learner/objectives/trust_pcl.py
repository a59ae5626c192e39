r"""`trust_pcl`: path consistency learning of a policy with a KL penalty (Nachum et al. 2018, arXiv 1707.01891).

    delta(tau) = V(y) + alpha sum_k [log q(s_k+1 | s_k, y) - log p(s_k+1 | s_k)] - log p(y | x),    alpha = 1 / beta,

over whole trajectories, with the soft value V of the start learned per measurement. With V = alpha log Z this is alpha
times the residual of relative trajectory balance, and the squared loss alpha^2 times (Deleu et al. 2025, arXiv
2509.01632): the two are one method, in units of reward here and of log-probability there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.batch import PathBatch
from learner.loss import Loss
from learner.objectives.base import Balance

__all__ = ["TrustPCL"]


class TrustPCL(Balance):
    """delta in units of reward."""

    def __init__(self, shape: Loss, measurements: int) -> None:
        """`measurements` is their number M."""
        super().__init__(shape)
        self.value = nn.Parameter(torch.zeros(measurements, dtype=torch.float64))

    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """See `Balance.residual`."""
        return self.value[batch.group] + log_ratio / beta - batch.log_likelihood.double()
