"""Ranks that share the network out: each keeps a part of every weight, its gradient and its moments (FSDP2).

What a rank holds of a network falls to one N-th, with the weights of one block whole at a time: before it is run they
are gathered, after that let go, and in the backward pass every rank receives the sum of the gradients of its own part
(Rajbhandari et al. 2020, arXiv 1910.02054; Zhao et al. 2023, 2304.11277). Parts are cut along the first axis: of n rows
rank r has the rows from r c to (r + 1) c, c = ceil(n / N), as far as there are any.

Gathering takes all ranks: they have to run the network equally often, and to ask together for what is whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from diffusion.posterior import Posterior
from learner.ranks import DistributedRanks

__all__ = ["ShardedRanks"]


class ShardedRanks(DistributedRanks):
    """`DistributedRanks` with the weights of the posterior's networks shared out."""

    def distribute(self, posterior: Posterior) -> None:
        """See `Ranks`; a network that has lists of blocks is gathered block by block, another one at once."""
        mesh = init_device_mesh(next(posterior.parameters()).device.type, (self.size,))
        for network in posterior.networks:
            for part in (*_blocks(network), network):
                fully_shard(part, mesh=mesh)
            for part in network.modules():
                if isinstance(part, FSDPModule):  # by itself it takes the mean over ranks
                    part.set_gradient_divide_factor(1.0)
                    part.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def own(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """See `Ranks`."""
        if not isinstance(parameter, DTensor):
            return whole
        rows = -(-len(whole) // self.size)
        return whole[self.rank * rows : (self.rank + 1) * rows]

    def whole(self, own: Tensor, parameter: Tensor) -> Tensor:
        """See `Ranks`."""
        if not isinstance(parameter, DTensor):
            return own
        padded = own.new_zeros(-(-len(parameter) // self.size), *own.shape[1:], device=parameter.device)
        padded[: len(own)] = own
        return self.gather(padded)[: len(parameter)].to(own.device)

    def like(self, own: Tensor, parameter: Tensor) -> Tensor:
        """See `Ranks`."""
        if not isinstance(parameter, DTensor):
            return own
        mesh, placements = parameter.device_mesh, parameter.placements
        own = own.to(parameter.device)
        return DTensor.from_local(own, mesh, placements, shape=parameter.shape, stride=parameter.stride())

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Ranks`; those of what is shared out are sums already."""
        super().add_gradients(value for value in parameters if not isinstance(value, DTensor))

    def clip_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """See `Ranks`."""
        trained = [value for value in parameters if value.grad is not None]
        kinds = [[value for value in trained if isinstance(value, DTensor) is shared] for shared in (True, False)]
        norms = [nn.utils.get_total_norm([value.grad for value in kind if value.grad is not None]) for kind in kinds]
        total = torch.stack([value.full_tensor() if isinstance(value, DTensor) else value for value in norms]).norm()
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, total)
        return float(total)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The modules of the outermost lists of modules."""
    if isinstance(network, nn.ModuleList):
        return list(network)
    return [block for child in network.children() for block in _blocks(child)]
