r"""Samples of the chain's posterior pi from those of a learned one, q: resampled, then moved.

Paths tau of q have importance weights w = p(tau) p(y | x) / q(tau), so a draw among N of them by weight is a draw of pi
up to an error that falls with N. The copies of one path part, and that error shrinks, as moves in path space that leave
pi invariant are made of them (resample-move, Gilks and Berzuini 2001): suffixes that q proposes, prefixes noised anew
(`actors.path_search`). Where q has no paths at all there are none afterwards: the effective sample size says how many
there were to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from actors.rollout import Rollout
from actors.stored_paths import StoredPaths
from actors.suffix_choice import window_sizes
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin
from envs.problem import InverseProblem

__all__ = ["SWEEPS", "moved", "resampled"]

SWEEPS = 4


def resampled(parts: Iterable[Rollout], count: int, generator: torch.Generator) -> tuple[Rollout, Tensor] | None:
    """(`count` paths, their numbers [count]): draws by weight, independent and with replacement, from all of `parts`.

    One part at a time: each draw stays what it was, or is one of the new part's paths, in proportion to their weights.
    None if no path has weight.
    """
    numbers = torch.zeros(count, dtype=torch.int64, device="cpu")  # also where the paths are on a GPU
    drawn, total, seen = None, -math.inf, 0
    for part in parts:
        offset, seen = seen, seen + len(part.states)
        log_weight = part.log_weight
        log_weight = torch.where(log_weight.isfinite(), log_weight, -math.inf)
        mass = float(log_weight.logsumexp(0))
        if mass == -math.inf:
            continue
        total = float(np.logaddexp(total, mass))
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=log_weight.device)
        renewed = (uniform < math.exp(mass - total)).nonzero()[:, 0]  # all of them at first
        if not len(renewed):
            continue
        weight = (log_weight - mass).exp()
        rows = torch.multinomial(weight, len(renewed), replacement=True, generator=generator)
        numbers[renewed.cpu()] = offset + rows.cpu()
        if drawn is None:
            drawn = part.take(rows)
        else:
            drawn.put(renewed, part.take(rows))
    return None if drawn is None else (drawn, numbers)


def moved(
    problem: InverseProblem, posterior: Posterior, paths: Rollout, generator: torch.Generator, *, sweeps: int = SWEEPS
) -> tuple[Tensor, float]:
    """(samples [N, *D] of the moved `paths`, share of the suffixes that was accepted).

    Sweep i of n proposes suffixes from a step of the i-th n-th of the chain, the same for all paths, then prefixes. The
    earlier the step, the smaller the window of x that its suffix is new in: each has its chance to be accepted.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    message = paths.trajectory(np.arange(len(paths.states), dtype=np.uint64), 0, Origin.ON_POLICY)
    stored = StoredPaths(problem, message, generator=generator, guided=posterior.uses_guidance)
    accepted, windows = 0.0, window_sizes(problem.event_shape)[::-1]
    for index in range(sweeps):
        place = (index + float(torch.rand((), generator=generator, device=paths.states.device))) / sweeps
        sides = windows[index * len(windows) // sweeps]
        suffixes = stored.redraw_suffix(int(place * problem.num_steps), posterior.control, sides)
        accepted += float(suffixes.double().mean()) / sweeps
        length = torch.randint(problem.num_steps, (), generator=generator, device=paths.states.device)
        stored.renoise_prefix(1 + int(length))
    return stored.samples, accepted
