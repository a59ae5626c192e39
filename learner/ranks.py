r"""Several learners as one: each has a part of every batch, and all take the same step.

A loss sees the posterior through the log-ratios of a batch, a few numbers a trajectory. So these are gathered: every
rank evaluates the loss, and its centres and weights, on the whole batch, and back-propagates through its own part

    dL/dtheta = sum over ranks r of sum_{i in part r} sum_k w_ik dlog q_ik/dtheta.

Gradients are summed, guard and optimiser then do the same everywhere. N ranks on parts of a batch are one rank on the
whole, for every objective, up to the order of sums. What is learned beside the posterior (log Z) has its gradient from
the whole batch on every rank already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion.posterior import Posterior
from learner.batch import PathBatch

__all__ = [
    "ONE_RANK",
    "DistributedRanks",
    "OneRank",
    "RankLost",
    "Ranks",
    "held",
    "own_rows",
    "together",
    "whole_batch",
]


class RankLost(Exception):
    """A rank is gone or silent, and the others cannot go on."""


def held(value: Tensor) -> Tensor:
    """What this rank has of a parameter, or of a tensor that is shared out as one is."""
    return value.to_local() if isinstance(value, DTensor) else value


class Ranks(Protocol):
    """What a learner asks of the others."""

    rank: int
    """Which one this is, 0 .. size - 1."""
    size: int
    """How many there are."""

    def gather(self, value: Tensor) -> Tensor:
        """[size B, ...] the `value` [B, ...] of all ranks, in their order; without graph."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks of `value`, without graph."""
        ...

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every `.grad` becomes the sum of those of all ranks."""
        ...

    def clip_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """The norm of all gradients together, which are scaled down where it is above `limit`."""
        ...

    def distribute(self, posterior: Posterior) -> None:
        """Before there is an optimiser: leaves this rank with what it is to hold of the parameters."""
        ...

    def own(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """What this rank holds of `whole`, a tensor of the shape that `parameter` has in all ranks together."""
        ...

    def whole(self, own: Tensor, parameter: Tensor) -> Tensor:
        """The tensor of which each rank holds its `own`; all ranks have to ask for it together."""
        ...

    def like(self, own: Tensor, parameter: Tensor) -> Tensor:
        """What this rank holds of a tensor as an optimiser of `parameter` keeps it."""
        ...


class _WholeWeights:
    """Every rank holds all parameters."""

    def clip_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """See `Ranks`."""
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def distribute(self, posterior: Posterior) -> None:
        """See `Ranks`."""

    def own(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """See `Ranks`."""
        return whole

    def whole(self, own: Tensor, parameter: Tensor) -> Tensor:
        """See `Ranks`."""
        return own

    def like(self, own: Tensor, parameter: Tensor) -> Tensor:
        """See `Ranks`."""
        return own


class OneRank(_WholeWeights):
    """A learner by itself."""

    rank, size = 0, 1

    def gather(self, value: Tensor) -> Tensor:
        """See `Ranks`."""
        return value.detach()

    def total(self, value: Tensor) -> Tensor:
        """See `Ranks`."""
        return value.detach()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Ranks`."""


ONE_RANK = OneRank()


@contextmanager
def together() -> Iterator[None]:
    """Raises `RankLost` where a rank did not take part in what is done inside."""
    try:
        yield
    except RuntimeError as error:
        # nccl has an error of its own; gloo's is known by the file that it names.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        raise RankLost(f"the ranks fell out of step: {' '.join(str(error).split())[:200]}") from error


class DistributedRanks(_WholeWeights):
    """The ranks of torch.distributed's default process group, which must have been made: gloo on CPUs, nccl on GPUs.

    Every method raises `RankLost` where a rank does not take part within the group's time limit.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, value: Tensor) -> Tensor:
        """See `Ranks`; parts must be of one size."""
        value = value.detach().contiguous()
        # gloo knows no bool.
        sent = value.to(torch.uint8) if value.dtype == torch.bool else value
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        with together():
            dist.all_gather(parts, sent)
        return torch.cat(parts).to(value.dtype)

    def total(self, value: Tensor) -> Tensor:
        """See `Ranks`."""
        value = value.detach().clone()
        with together():
            dist.all_reduce(value)
        return value

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Ranks`; one message for all."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            return
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
        with together():
            dist.all_reduce(flat)
        for parameter, part in zip(trained, flat.split([value.numel() for value in trained]), strict=True):
            parameter.grad = part.view_as(parameter).clone()


def whole_batch(ranks: Ranks, batch: PathBatch, *, with_paths: bool) -> PathBatch:
    """The batch of all ranks; without `with_paths` states and estimates are zeros, and of no use."""
    if ranks.size == 1:
        return batch
    count = ranks.size * len(batch)

    def paths(value: Tensor) -> Tensor:
        return ranks.gather(value) if with_paths else value.new_zeros(()).expand(count, *value.shape[1:])

    return replace(
        batch,
        states=paths(batch.states),
        denoised=paths(batch.denoised),
        guidance=None,
        measurement=ranks.gather(batch.measurement),
        measurement_id=ranks.gather(batch.measurement_id),
        log_likelihood=ranks.gather(batch.log_likelihood),
        log_behaviour_ratio=ranks.gather(batch.log_behaviour_ratio),
        exact=ranks.gather(batch.exact),
    )


def own_rows(ranks: Ranks, batch: PathBatch) -> slice:
    """Where the rows of `batch` are in the batch of all ranks."""
    return slice(ranks.rank * len(batch), (ranks.rank + 1) * len(batch))
