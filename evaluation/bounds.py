r"""Bounds on the evidence from importance weights of whole paths.

With the log weight of a path tau = (s_0, ..., s_T = x), the base densities of p and q cancelling,

    lw(tau) = log p(tau) + log p(y | x) - log q(tau) = log p(y | x) - sum_k [log q - log p],

    ELBO = E_q[lw]  <=  E_q[log mean_K exp lw] = IW-K  <=  log Z  <=  E_pi[lw] = EUBO,

where pi is the exact posterior of the chain. log Z - ELBO = KL(q || pi) and EUBO - log Z = KL(pi || q), so the two
bounds certify q from both sides: a posterior that lost a mode has a good ELBO and a bad EUBO. Sources: IW-K, Burda et
al. 2016 (arXiv 1509.00519); EUBO, Blessing et al. 2024 (arXiv 2406.07423).
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from scipy.optimize import brentq
from torch import Tensor

from diffusion.denoiser import Density
from diffusion.path import PathScorer, denoise_path, density_over_chain, path_log_ratio
from envs.problem import InverseProblem

__all__ = [
    "ExactPathSampler",
    "bound_standard_error",
    "bridge_log_partition",
    "bridge_variance",
    "effective_sample_size",
    "elbo",
    "eubo",
    "exact_paths",
    "iw_log_partition",
    "iw_standard_error",
    "path_discretisation",
    "path_log_weight",
]


@runtime_checkable
class ExactPathSampler(Protocol):
    """An exact posterior that also draws whole paths of the discrete chain."""

    def sample_path(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, T+1, *D] exact draws of the chain given y."""
        ...


def elbo(log_weight: Tensor) -> float:
    """Mean of lw [N] over paths drawn by q: a lower bound of log Z, nats."""
    return float(_checked(log_weight).mean())


def eubo(log_weight: Tensor) -> float:
    """Mean of lw [N] over exact posterior paths: an upper bound of log Z, nats. Paths: `exact_paths`."""
    return float(_checked(log_weight).mean())


def bound_standard_error(log_weight: Tensor) -> float:
    """Monte-Carlo standard error of `elbo` or `eubo` from lw [N], nats; nan for N = 1."""
    return float(_checked(log_weight).std() / math.sqrt(len(log_weight)))


def iw_log_partition(log_weight: Tensor, group: int | None = None) -> float:
    """IW-K: log of the mean of exp(lw) over K = `group` paths, averaged over disjoint groups of lw [N], nats.

    K = None takes all N in one group. Rises with K in expectation, towards log Z; when K does not divide N the
    remainder is left out.
    """
    weights = _checked(log_weight)
    size = len(weights) if group is None else group
    if not 1 <= size <= len(weights):
        raise ValueError(f"group must be within 1..{len(weights)}, the number of weights, got {group}")
    count = len(weights) // size
    groups = weights[: count * size].reshape(count, size)
    return float((groups.logsumexp(1) - math.log(size)).mean())


def iw_standard_error(log_weight: Tensor) -> float:
    """Standard error of IW-N by the delta method, sqrt((1 / ESS - 1) / N), nats.

    Too small when ESS is, because it cannot know of modes that no path has reached.
    """
    fraction = effective_sample_size(log_weight)
    return math.sqrt(max(1 / fraction - 1, 0.0) / len(log_weight)) if fraction > 0 else math.nan


def bridge_log_partition(proposed: Tensor, posterior: Tensor) -> float:
    r"""Log Z from lw of paths drawn by q ([N], float64) and of as exact paths of the posterior ([M]), nats.

    The bridge estimate of least variance, the root c = log Z of  sum_q 1 / (1 + (N / M) e^(c - lw)) =
    sum_pi 1 / (1 + (M / N) e^(lw - c))  (Bennett 1976; Meng and Wong 1996). Between the two samples' own means, and far
    better than either where they overlap. lw of -inf (zero likelihood) among those of q counts as what it is.
    """
    q, pi = _checked(proposed), _checked(posterior)
    finite = torch.cat([q, pi])
    finite = finite[torch.isfinite(finite)]
    offset = math.log(len(pi) / len(q))

    def difference(value: float) -> float:
        return float(torch.sigmoid(q - value + offset).sum() - torch.sigmoid(value - offset - pi).sum())

    margin = 1 + abs(offset) + math.log(len(q) + len(pi))
    return float(brentq(difference, float(finite.min()) - margin, float(finite.max()) + margin, xtol=1e-9))


def bridge_variance(proposed: Tensor, posterior: Tensor, log_partition: float) -> float:
    """Asymptotic variance of `bridge_log_partition`, nats squared, for as many paths of q as of the posterior, N each.

    (2 / N) (1 / o - 1) with the overlap o = integral of 2 q pi / (q + pi) (Meng and Wong 1996), estimated from both.
    """
    q, pi = _checked(proposed), _checked(posterior)
    overlap = float(torch.sigmoid(q - log_partition).mean() + torch.sigmoid(log_partition - pi).mean())
    return 2 / len(q) * max(1 / overlap - 1, 0.0) if overlap > 0 else math.inf


def effective_sample_size(log_weight: Tensor) -> float:
    """(sum w)^2 / (N sum w^2) of w = exp(lw [N]), a fraction in (0, 1]; 1 if and only if all weights are equal."""
    weights = _checked(log_weight)
    return float((2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)).exp() / len(weights))


def exact_paths(
    problem: InverseProblem, measurement_id: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """[count, T+1, *D] float64 paths from the exact posterior of measurement `measurement_id`.

    Where the exact posterior is one of the discrete chain (`ExactPathSampler`), these are exact draws pi of the
    chain given y and the mean of lw over them is log Z + KL(pi || q).

    Otherwise x is drawn exactly and noised: pi(tau) = p(x | y) n(tau | x). The mean of lw is then
    log Z + KL(pi || q) - KL(pi || chain posterior), Z being the chain's evidence. The last term vanishes as T grows;
    until then the mean is too low to be a bound. `path_discretisation` mends that where the prior has a density.

    Raises:
        ValueError: the problem has no exact posterior.
    """
    if not problem.exact:
        raise ValueError(f"problem {problem.name!r} has no exact posterior to draw paths from")
    exact = problem.exact[measurement_id]
    if isinstance(exact, ExactPathSampler):
        return exact.sample_path(count, generator)
    return problem.prior.noising.sample_path(exact.sample(count, generator), generator)


def path_log_weight(
    problem: InverseProblem, scorer: PathScorer, states: Tensor, measurement_id: int, denoised: Tensor | None = None
) -> Tensor:
    """[N] float64 log weights lw of the paths `states` [N, T+1, *D] under q = `scorer`, nats.

    The network runs in the dtype of `states`; the sum over steps is float64. `denoised` [N, T, *D] are the prior's
    estimates along the paths, computed if None.
    """
    denoised = denoise_path(problem.prior, states) if denoised is None else denoised
    rows = torch.full((len(states),), measurement_id, device=states.device)
    measurement = problem.measurements[rows].to(states)
    ratio = path_log_ratio(scorer, states, denoised, measurement)
    return problem.log_likelihood(states[:, -1], rows).double() - ratio.double().sum(1)


def path_discretisation(problem: InverseProblem, states: Tensor, denoised: Tensor | None = None) -> Tensor | None:
    """[N] float64 log p(x) + log n(tau | x) - log p(tau) of noised paths [N, T+1, *D]; None if p(x) is unknown.

    Added to lw, its mean over noised exact samples turns the EUBO into log Z + KL(pi || q) with the evidence Z of
    p(x) itself, an upper bound at any T. Not for paths of an `ExactPathSampler`, which need no such correction.
    """
    prior = problem.prior
    if not isinstance(prior.denoiser, Density):
        return None
    return density_over_chain(prior, states, denoise_path(prior, states) if denoised is None else denoised)


def _checked(log_weight: Tensor) -> Tensor:
    # float32 log weights of a long path lose the nats that the bounds are about.
    if log_weight.ndim != 1 or len(log_weight) == 0 or log_weight.dtype != torch.float64:
        raise ValueError(
            f"log weights must be a non-empty float64 vector, got {log_weight.dtype} of shape {tuple(log_weight.shape)}"
        )
    return log_weight
