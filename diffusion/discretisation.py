r"""What a finite number of steps costs: how far the states of a chain are from those of its data.

Data with noise, n(tau) = p(x) n(tau | x), and the chain p(tau) of `diffusion.prior` differ, per dimension of x and down
to a level of little noise, by KL(n || p) = D(T) + (what the denoiser is worse than the best one, at any T), with

    D(T) = base + sum_k r_k,
    r_k  = 1/2 [ log(1 + w_k c_k) + (1 + v_k c_k) / (1 + w_k c_k) - 1 - integral of v over [g_k, g_k+1] ],
    base = 1/2 [ g_0 E|x|^2 / D - integral of v over [0, g_0] ],

where g = alpha^2 / sigma^2 is the signal-to-noise ratio, up to that of the last level, c_k = g_k+1 - g_k, v the
denoiser's mean squared error per dimension and w_k the error that the transitions' variance presumes (as a rule v).

The last level has noise of a hundredth of the standard deviation of x (`RESOLUTION`). A chain whose own last level is
noisier draws x in one transition from there, and D(T) compares its x with the data, both with that noise; without any,
data on a line, or in whole numbers, would be infinitely far from every chain.

Derivation. Given x both transitions are Gaussian: N(a s + b x, beta~) and N(a s + b x^, beta~ + b^2 w), and
b^2 / beta~ = c (`diffusion.kernel`), so that their divergence is 1/2 [log(1 + wc) + (1 + vc) / (1 + wc) - 1] per
dimension (Ho et al. 2020, arXiv 2006.11239, eq. 5). Summed, that is KL(n || p) plus the mutual information of x and the
last state, which is half the integral of the best denoiser's error over g (Guo, Shamai and Verdu 2005, IEEE Trans.
Inf. Theory 51, 1261). The integral of v in its place leaves half that of what v is larger: the divergence of infinitely
many steps (Kingma et al. 2021, arXiv 2107.00630).

For an exact denoiser D(T) bounds the divergence of the last state alone, by the chain rule. It is then not negative,
and zero for Gaussian data of one variance in every direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.denoising_error import levels_at
from diffusion.schedule import Schedule

__all__ = ["RESOLUTION", "discretisation_error", "noise_left", "smallest_num_steps"]

Error = Callable[[Tensor, Tensor], Tensor]
"""(alpha, sigma) [K] -> [K] mean squared error per dimension."""

RESOLUTION = 0.01
"""Noise of the level at which chain and data are compared, in standard deviations of x."""
LOWEST = -16.0  # lambda below which the integral over g is that of the variance of x, to 1e-14
CELL = 1 / 32  # of lambda; twice as fine changes the error of a chain by less than 1e-7
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


def discretisation_error(
    schedule: Schedule,
    error: Error,
    data_std: float,
    *,
    presumed: Error | None = None,
    mean_square: float | None = None,
    resolution: float = RESOLUTION,
) -> float:
    """D(T), nats per dimension, of the chain on `schedule` whose denoiser has `error`.

    `presumed` is what the chain takes for it (the same if None), `data_std` the standard deviation of x per dimension
    and `mean_square` E|x|^2 / D, its square if None, which matters where the chain starts with a trace of x.
    """
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    last = 1 / (resolution * data_std) ** 2
    ratio = np.append((alpha / sigma).square().numpy(), math.inf).clip(max=last)
    gained = np.diff(ratio)
    found = error(alpha, sigma).numpy()
    taken = found if presumed is None else presumed(alpha, sigma).numpy()
    start, *between = np.diff(_integral(error, data_std, ratio), prepend=0.0)
    base = ratio[0] * (data_std**2 if mean_square is None else mean_square) - start
    transitions = np.log1p(taken * gained) + gained * (found - taken) / (1 + taken * gained) - np.array(between)
    return 0.5 * float(base + transitions.sum())


def noise_left(schedule: Schedule, presumed: Error) -> float:
    """Standard deviation of the last transition, in the units of x: x is drawn around its estimate with it."""
    return math.sqrt(float(presumed(schedule.alpha[:-1], schedule.sigma[:-1])[-1]))


def smallest_num_steps(error_of: Callable[[int], float], bound: float, first: int, last: int) -> int | None:
    """The smallest T in `first`..`last` whose `error_of`(T), which falls with T, is at most `bound`; None if none."""
    if error_of(last) > bound:
        return None
    while first < last:
        middle = (first + last) // 2
        if error_of(middle) <= bound:
            last = middle
        else:
            first = middle + 1
    return last


def _integral(error: Error, data_std: float, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """[K] integral of v over [0, g] for g = `ratio` [K], increasing.

    By Gauss's rule in cells of lambda = log(d sqrt(g)). For Gaussian data it is log(1 + d^2 g): only how v
    differs from theirs is integrated.
    """
    levels = np.log(np.maximum(data_std * np.sqrt(ratio), math.exp(LOWEST)))
    cells = np.unique(np.concatenate([np.arange(LOWEST, levels[-1], CELL), levels]))
    half, middle = 0.5 * np.diff(cells), 0.5 * (cells[1:] + cells[:-1])
    places = middle[:, None] + half[:, None] * NODES
    alpha, sigma = levels_at(torch.from_numpy(places.ravel()), data_std)
    share = error(alpha, sigma).numpy().reshape(places.shape) * (1 + np.exp(2 * places)) / data_std**2
    slope = 2 / (1 + np.exp(-2 * places))  # of log(1 + e^(2 lambda))
    sums = np.concatenate([[0.0], np.cumsum(half * ((share - 1) * slope * WEIGHTS).sum(1))])
    return np.log1p(data_std**2 * ratio) + sums[np.searchsorted(cells, levels)]
