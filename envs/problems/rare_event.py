r"""`rare-event`: how x ~ N(0, I) comes to a rare event, with Z = p(event) known.

There is no noise: p(y = 1 | x) is one in the event and zero elsewhere (`envs.likelihoods.EventLikelihood`), so log Z is
the logarithm of the event's probability. The prior's samples hardly ever reach it and the likelihood has no gradient;
path search goes there by levels (`actors.path_search`), as subset simulation does. Limit states (`envs.exact.event`):

    linear        sum_i x_i / sqrt(D) >= level,                                        Z = Phi(-level)
    four-branch   the series system of structural reliability, D = 2, four failure modes

At level 3 of the four branches Z = 2.2e-3, at 4 it is 6.4e-5, at 5 1.2e-6.

q leaves the event with a little of its mass, where a path's weight is zero: the ELBO is then minus infinity, and not a
measure of fit. The importance-weighted estimate and the effective sample size count such paths as what they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.denoiser import GaussianDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.event import CURVATURE, BranchPosterior, HalfSpacePosterior, branch_edge
from envs.likelihoods import EventLikelihood
from envs.problem import Classes, ExactPosterior, InverseProblem
from envs.registry import register

__all__ = ["rare_event"]


@register("rare-event")
def rare_event(
    *,
    limit_state: str = "four-branch",
    level: float = 3.0,
    dim: int = 2,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
) -> InverseProblem:
    """X in `dim` dimensions given the event of `limit_state` (linear or four-branch), `level` deviations out."""
    if limit_state not in ("linear", "four-branch"):
        raise ValueError(f"limit_state must be linear or four-branch, got {limit_state!r}")
    if not 0 <= level <= 8:
        raise ValueError(f"level must be within 0..8 standard deviations, got {level}")
    if limit_state == "four-branch" and dim != 2:
        raise ValueError(f"the four branches are in the plane: dim must be 2, got {dim}")
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    denoiser = GaussianDenoiser(torch.zeros(dim), 1.0)
    prior = Prior(denoiser, make_schedule(schedule, num_steps), (dim,), 1.0)
    exact: ExactPosterior
    classes = None
    if limit_state == "linear":
        exact = HalfSpacePosterior(torch.full((dim,), dim**-0.5, dtype=torch.float64), level)
        likelihood = EventLikelihood(lambda value: value.sum(1) / math.sqrt(dim) - level)
    else:
        exact = BranchPosterior(level)
        likelihood = EventLikelihood(lambda value: _branches(value, level).amax(1))
        names = ("x1 + x2 > 0", "x1 + x2 < 0", "x1 > x2", "x1 < x2")
        classes = Classes(names, lambda value: _classify(value, level), exact.branches[None])
    return InverseProblem(
        name="rare-event",
        prior=prior,
        likelihood=likelihood,
        measurements=torch.ones(1, 1),
        exact=(exact,),
        classes=classes,
    )


def _branches(value: Tensor, level: float) -> Tensor:
    """[N, 4] margin of every branch at x = `value` [N, 2], not negative where it fails."""
    u, v = (value[:, 0] + value[:, 1]) / math.sqrt(2), (value[:, 0] - value[:, 1]) / math.sqrt(2)
    threshold, edge = level + CURVATURE * v.square(), branch_edge(level)
    # The published limit states of the last two are (x_1 - x_2) + k / sqrt(2), of which v is sqrt(2) times shorter.
    last = math.sqrt(2) * torch.stack([v - edge, -v - edge], 1)
    return torch.cat([torch.stack([u - threshold, -u - threshold], 1), last], 1)


def _classify(value: Tensor, level: float) -> Tensor:
    """[N, 4] one for the branch that x failed by, the last two first; of an x that did not fail, the nearest."""
    margin = _branches(value, level)
    beyond = margin[:, 2:].amax(1) >= 0
    row = torch.where(beyond, 2 + margin[:, 2:].argmax(1), margin.argmax(1))
    return torch.nn.functional.one_hot(row, 4).to(value)
