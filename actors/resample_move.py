r"""Samples of the chain's posterior pi from those of a learned one, q: resampled, then moved.

Paths tau of q have importance weights w = p(tau) p(y | x) / q(tau), so a draw among N of them by weight is a draw of pi
up to an error that falls with N. The copies of one path part, and that error shrinks, as they are moved by path search,
which leaves pi invariant, with q as one of the kernels that propose (resample-move, Gilks and Berzuini 2001). Where q
has no paths at all there are none afterwards: the effective sample size says how many there were to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from actors.rollout import Rollout
from actors.stored_paths import StoredPaths
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["SWEEPS", "moved", "resampled"]

SWEEPS = 4  # two of the kernel that is guided by the likelihood, where it has a gradient, and two of q


def resampled(parts: Iterable[Rollout], count: int, generator: torch.Generator) -> Rollout | None:
    """`count` draws by weight, independent and with replacement, from all paths of `parts`; None if none has weight.

    One part at a time: each draw stays what it was, or is one of the new part's paths, in proportion to their weights.
    """
    kept, total = None, -math.inf
    for part in parts:
        log_weight = part.log_weight
        log_weight = torch.where(log_weight.isfinite(), log_weight, -math.inf)
        mass = float(log_weight.logsumexp(0))
        if mass == -math.inf:
            continue
        total = float(np.logaddexp(total, mass))
        drawn = part.take(torch.multinomial((log_weight - mass).exp(), count, replacement=True, generator=generator))
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=log_weight.device)
        kept = drawn if kept is None else kept.replaced(uniform < math.exp(mass - total), drawn)
    return kept


def moved(
    problem: InverseProblem,
    posterior: Posterior,
    paths: Rollout,
    generator: torch.Generator,
    *,
    sweeps: int = SWEEPS,
    rows: int = 512,
) -> tuple[Tensor, float]:
    """(samples [N, *D] of the moved `paths`, share of proposals that was accepted); so many `rows` at a time."""
    samples, accepted = [], []
    for part in torch.arange(len(paths.states)).split(rows):
        message = paths.take(part).trajectory(np.arange(len(part), dtype=np.uint64), 0, Origin.ON_POLICY)
        stored = StoredPaths(problem, message, generator=generator, guided=problem.gradient is not None)
        accepted.append(stored.settle(posterior.control, sweeps) * len(part))
        samples.append(stored.samples)
    return torch.cat(samples), sum(accepted) / len(paths.states)
