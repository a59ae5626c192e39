r"""`rtb`: relative trajectory balance with a learned log-partition (Venkatraman et al. 2024, arXiv 2405.20971, eq. 9).

    delta(tau) = log Z(y) + sum_k [log q(s_k+1 | s_k, y) - log p(s_k+1 | s_k)] - beta log p(y | x)

Zero on every trajectory if and only if q is the posterior. log Z is one learned number per measurement.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["rtb"]


def rtb(
    log_ratio: Tensor,
    log_likelihood: Tensor,
    log_partition: Tensor,
    group: Tensor,
    beta: float = 1.0,
    huber: float | None = None,
) -> Tensor:
    """[B] float64 residual of each trajectory.

    `log_ratio` [B] is the sum over the path of log q - log p, `log_likelihood` [B] untempered, `log_partition` [M] the
    learned log Z, `group` [B] the measurement of each trajectory. `huber` makes no difference here.

    Raises:
        ValueError: the three vectors differ in shape; a [B, 1] among them would make a matrix of the residuals.
    """
    if not log_ratio.shape == log_likelihood.shape == group.shape or group.ndim != 1:
        raise ValueError(
            "log_ratio, log_likelihood and group must be [B] each, "
            f"got {tuple(log_ratio.shape)}, {tuple(log_likelihood.shape)} and {tuple(group.shape)}"
        )
    return log_partition.double()[group] + log_ratio.double() - beta * log_likelihood.double()
