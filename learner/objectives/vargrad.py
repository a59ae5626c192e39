r"""`vargrad`: the residual centred on its own mean over the trajectories of the same measurement.

    delta_i - mean of delta_j over j with y_j = y_i,

the mean being detached. log Z cancels, so nothing has to be learned for it (Richter et al. 2020, arXiv 2010.10436; per
measurement as in Sendera et al. 2024, 2402.05098, section 3.3). The gradient of the mean square is that of the
variance: the term through the mean has weight sum_i (delta_i - mean) = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.rtb import rtb

__all__ = ["vargrad"]


def vargrad(
    log_ratio: Tensor, log_likelihood: Tensor, log_partition: Tensor, group: Tensor, beta: float = 1.0
) -> Tensor:
    """[B] float64 centred residual of each trajectory; as `rtb`, `log_partition` [M] only telling the number M."""
    residual = rtb(log_ratio, log_likelihood, torch.zeros_like(log_partition), group, beta)
    total = residual.new_zeros(len(log_partition)).index_add(0, group, residual.detach())
    count = residual.new_zeros(len(log_partition)).index_add(0, group, torch.ones_like(residual))
    return residual - (total / count.clamp_min(1.0))[group]
