r"""`subtb`: relative trajectory balance on every part of a trajectory (Madan et al. 2023, arXiv 2209.12782; relative
to a reference process Zhang et al. 2024, 2310.02679).

    delta_ij = log f_i + sum over i <= k < j of [log q - log p](s_k, s_k+1) - log f_j,    0 <= i < j <= T,
    f_0 = Z(y),    f_k = f(s_k, y; k) learned for 0 < k < T,    f_T = p(y | x)^beta,

all zero if and only if q is the posterior and f_k(s_k, y) = E_p[p(y | x)^beta | s_k]. The loss of a trajectory is the
mean of loss(delta_ij) with weights lambda^(j - i): a large lambda is relative trajectory balance, a small one tells a
transition of what is next to it alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.kernel import expand
from diffusion.network import MLP
from diffusion.prior import Prior
from learner.batch import PathBatch
from learner.log_partition import LogPartition
from learner.loss import Loss
from learner.objectives.base import RatioObjective

__all__ = ["SubTrajectoryBalance"]


class SubTrajectoryBalance(RatioObjective):
    """Balance of all parts, with a network for the flow."""

    of_sums = False
    sees_paths = True

    def __init__(
        self,
        shape: Loss,
        log_partition: LogPartition,
        prior: Prior,
        measurement_shape: tuple[int, ...],
        decay: float,
        hidden: int = 128,
    ) -> None:
        """`decay` is lambda, `hidden` the width of the network of the flow."""
        super().__init__()
        self.shape, self.decay = shape, decay
        self.log_partition = log_partition
        dim, seen = torch.Size(prior.event_shape).numel(), torch.Size(measurement_shape).numel()
        self.flow = MLP(2 * dim + seen, 1, hidden, depth=2)
        nn.init.zeros_(self.flow.head.weight)
        nn.init.zeros_(self.flow.head.bias)
        self._prior = (prior,)  # out of the module tree, as it is not trained

    def known(self, batch: PathBatch) -> Tensor:
        """See `RatioObjective.known`."""
        return self.log_partition.known(batch)

    def evaluate(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> tuple[Tensor, Tensor]:
        """See `RatioObjective.evaluate`; the residual is that of the whole trajectory."""
        steps, log_partition = batch.num_steps, self.log_partition(batch)[:, None]
        log_flow = torch.cat(
            [
                log_partition,
                self.log_flow(batch, log_partition),
                beta * batch.log_likelihood.double()[:, None],
            ],
            dim=1,
        )
        # delta_ij = g_j - g_i with g_k = sum_{m < k} log ratio_m - log f_k.
        passed = nn.functional.pad(log_ratio.double().cumsum(1), (1, 0))
        potential = passed - log_flow
        delta = potential[:, None, :] - potential[:, :, None]
        index = torch.arange(steps + 1, device=delta.device)
        length = (index[None, :] - index[:, None]).double()
        # Whatever the scale of the weights, it falls out: the largest is one, so that none overflows.
        exponent = length - (steps if self.decay > 1 else 1)
        weight = torch.where(length > 0, self.decay ** torch.where(length > 0, exponent, 0.0), 0.0)
        value = (weight * self.shape(delta)).sum((1, 2)) / weight.sum()
        return value.mean(), delta[:, 0, -1]

    def log_flow(self, batch: PathBatch, log_partition: Tensor) -> Tensor:
        """[B, T-1] float64, log f_k at the states s_1 ... s_T-1; `log_partition` [B, 1] at the start of training."""
        prior, count, inner = self._prior[0], len(batch), batch.num_steps - 1
        step = torch.arange(1, batch.num_steps, device=batch.states.device).repeat(count)
        state, denoised = batch.states[:, 1:-1].flatten(0, 1), batch.denoised[:, 1:].flatten(0, 1)
        spread = (prior.alpha[step].square() * prior.data_std**2 + prior.sigma[step].square()).sqrt()
        measurement = batch.measurement.repeat_interleave(inner, 0).to(state)
        inputs = [state / expand(spread, state), denoised / prior.data_std, measurement]
        level = step.to(state) * (20.0 / prior.num_steps) - 10.0  # as in the control form
        flow = self.flow(torch.cat([value.flatten(1) for value in inputs], dim=1), level)
        return log_partition + flow.double().reshape(count, inner)
