r"""A posterior under a Gaussian mixture as another mixture: the best Gaussian for each component that y speaks for.

The prior is sum_i w_i N(m_i, C), so the posterior is a mixture too, of N(x; m_i, C) p(y | x) / Z_i with the weights
w_i Z_i. For z, f = f_i and the modes of `envs.mixture_modes`, steps from Laplace's approximation, P = I + L^T H L at
the mode mu,

    P <- (1 - t) P + t (I + E[L^T H L]),    mu <- mu + t P^-1 E[grad f],    E over z ~ N(mu, P^-1),

lead to the Gaussian N(mu, P^-1) of the largest evidence lower bound, or near it:

    b_i = E[f(z)] - log det(P) / 2 + D / 2 <= log w_i Z_i

(Opper and Archambeau 2009, Neural Computation 21(3); by steps in the natural parameters, and with the information in
the place of the Hessian, as in Khan et al. 2018, arXiv 1806.04854). t is the best of a few for the bound. Where y is
linear in x with Gaussian noise Laplace's approximation is exact, and no step is made. Where y bends it can be too wide,
so that its draws are far too unlikely: of closure phases by tens of nats, and of M87's by thousands.

A prior that is no mixture, such as a network, is stood in for by one that is fitted to its draws
(`diffusion.fitted_mixture`): what guides paths need not be right, as their weights are those of the prior itself.
"""

from __future__ import annotations

import logging
import math
from typing import cast

import torch
from torch import Tensor

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from diffusion.field_denoiser import FieldDenoiser
from diffusion.fitted_mixture import fitted_mixture
from diffusion.prior import Prior
from diffusion.untied_mixture import UntiedMixtureDenoiser
from envs.asked import Asked
from envs.likelihoods import Likelihood, LikelihoodError
from envs.mixture_modes import Components, GuidingLikelihood

__all__ = ["VariationalMixtures", "variational_mixture"]

BEHIND_AT_FIRST, BEHIND = 15.0, 12.0  # nats by which a component left out is behind the best: Laplace's, and the bound
DRAWS, TRIALS = 8, 64  # of z: for the expectations of a step, and for the bound by which t is chosen
SHARES = (1.0, 0.5, 0.25, 0.1)  # t
STEPS = 24  # at most
LAST_DRAWS = 512  # for the bound at last
SMALL, SMALL_STEPS = 0.1, 3  # nats that the bound gains, and after how many such steps it is left at that
MANY = 500  # elements of x: few draws know the covariance of more, and every step of the fit goes with their cube
PRIOR_DRAWS, HELD_OUT, AT_A_TIME = 1_000, 200, 100  # x of a prior that is no mixture
GAUSSIAN_ENOUGH = 1.0  # nats by which f and the Gaussian's log density differ, as a standard deviation: no step is made

_log = logging.getLogger(__name__)


@torch.no_grad()
def variational_mixture(
    prior: GaussianDenoiser | MixtureDenoiser, likelihood: GuidingLikelihood, measurement: Tensor, asked: Asked
) -> UntiedMixtureDenoiser:
    """The approximate posterior given y = `measurement` [*Y]; `asked` is how the likelihood is.

    Raises:
        LikelihoodError: it is zero, or no number, wherever it was asked.
    """
    components = Components(prior, likelihood, measurement, asked)
    row, mean = components.modes()
    precision = torch.stack(
        [components.precision(components.placed(*each)) for each in zip(row[:, None], mean[:, None], strict=True)]
    )
    laplace = components.log_joint(row, mean) - 0.5 * torch.logdet(precision)
    kept = ~(laplace < laplace.max() - BEHIND_AT_FIRST)
    cut = len(row) == components.most and float(laplace.max() - laplace.min()) < BEHIND
    row, mean, precision = row[kept], mean[kept], precision[kept]
    bound = torch.zeros_like(laplace[kept])
    for index, each in enumerate(row):
        mean[index], precision[index], bound[index] = _best_gaussian(components, each, mean[index], precision[index])
    if not bool(bound.isfinite().any()):
        raise LikelihoodError(f"{asked.name} is zero, or no number, wherever modes of the posterior were looked for")
    kept = bound > bound.max() - BEHIND
    _log.info(
        "%d of the prior's %d components matter to y%s; by what guides the paths log p(y) is %.1f or more",
        int(kept.sum()),
        len(components.means),
        " (and some that were left out, as no more are taken)" if cut else "",
        float(bound.logsumexp(0)),
    )
    root = components.root @ torch.linalg.inv(torch.linalg.cholesky(precision[kept])).mT
    means = components.placed(row[kept], mean[kept]).flatten(1)
    return UntiedMixtureDenoiser(means, root @ root.mT, bound[kept], components.event_shape)


class VariationalMixtures:
    """Approximate posteriors, each worked out when it is first asked for and then kept."""

    def __init__(self) -> None:
        # With what each key is the id of, so that no other gets that id.
        self._known: dict[tuple[int, int, bytes], tuple[UntiedMixtureDenoiser, Likelihood]] = {}
        self._densities: dict[int, tuple[GaussianDenoiser | MixtureDenoiser, Prior]] = {}

    def of(self, prior: Prior, likelihood: Likelihood, measurement: Tensor, asked: Asked) -> UntiedMixtureDenoiser:
        """See `variational_mixture`: of the density of `prior`, and a `likelihood` with a gradient and residuals."""
        key = id(prior), id(likelihood), measurement.cpu().numpy().tobytes()
        if key not in self._known:
            if id(prior) not in self._densities:
                self._densities[id(prior)] = (_density(prior), prior)
            density = self._densities[id(prior)][0]
            found = variational_mixture(density, cast(GuidingLikelihood, likelihood), measurement, asked)
            self._known[key] = (found, likelihood)
        return self._known[key][0]


@torch.no_grad()
def _density(prior: Prior) -> GaussianDenoiser | MixtureDenoiser:
    """That of `prior` if it is a mixture, else one that is fitted to draws of its chain."""
    denoiser = prior.denoiser
    if isinstance(denoiser, GaussianDenoiser | MixtureDenoiser):
        return denoiser
    if isinstance(denoiser, FieldDenoiser):
        return denoiser.as_mixture()
    if (size := math.prod(prior.event_shape)) > MANY:
        _log.warning(
            "the guide variational is for some hundred elements of x: %d are known too little by %d draws of a prior "
            "that is no mixture, so compare it with repeated",
            size,
            PRIOR_DRAWS,
        )
    generator = torch.Generator(prior.std.device).manual_seed(0)
    drawn = torch.cat([prior.sample(AT_A_TIME, generator) for _ in range((PRIOR_DRAWS + HELD_OUT) // AT_A_TIME)])
    density = fitted_mixture(drawn[:PRIOR_DRAWS], drawn[PRIOR_DRAWS:])
    _log.info(
        "the prior is no mixture of Gaussians: for what guides the paths %s of its draws stands in for it, and is what "
        "the log p(y) of the guide is under",
        "the Gaussian" if len(density.means) == 1 else "the kernel density",
    )
    return density


def _best_gaussian(
    components: Components, row: Tensor, mean: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean [D], precision [D, D] and bound [] of component `row` [], from `mean` and `precision` on."""
    generator = torch.Generator().manual_seed(int(row))

    def noise(count: int) -> Tensor:  # of the processor, the same on every device
        half = torch.randn(count // 2, len(mean), generator=generator, dtype=torch.float64, device="cpu").to(mean)
        return torch.cat([half, -half])

    terms = _terms(components, row, mean, precision, noise(TRIALS))
    small = 0
    if float(terms.std()) < GAUSSIAN_ENOUGH:
        return mean, precision, _bound(terms)
    for _ in range(STEPS):
        z = _draws(mean, precision, noise(DRAWS))[0]
        z = z[components.log_joint(row.expand(len(z)), z).isfinite()]
        if not len(z):
            break
        value = components.placed(row.expand(len(z)), z)
        towards, uphill = components.precision(value), (components.gradient(value) - z).nan_to_num().mean(0)
        trial = noise(TRIALS)
        start = best = _bound(_terms(components, row, mean, precision, trial))
        at, sharp = mean, precision
        for share in SHARES:
            tried_precision = (1 - share) * precision + share * towards
            tried = mean + share * torch.linalg.solve(tried_precision, uphill)
            bound = _bound(_terms(components, row, tried, tried_precision, trial))
            if bound > best:
                best, at, sharp = bound, tried, tried_precision
        mean, precision = at, sharp
        small = small + 1 if best < start + SMALL else 0
        if small == SMALL_STEPS:
            break
    return mean, precision, _bound(_terms(components, row, mean, precision, noise(LAST_DRAWS)))


def _terms(components: Components, row: Tensor, mean: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
    """[N] f(z) - log N(z; mu, P^-1) + log N(0; 0, I), nats, at draws z made of `noise` [N, D]."""
    z, log_determinant = _draws(mean, precision, noise)
    density = components.log_joint(row.expand(len(z)), z)
    return density + 0.5 * noise.square().sum(1) - 0.5 * log_determinant


def _bound(terms: Tensor) -> Tensor:
    """The bound [] of `terms` [N], nats: their mean, if the likelihood is nowhere zero.

    Where it is, that of the Gaussian cut to where it is not: the mean there, and the logarithm of the share of draws.
    """
    sound = terms.isfinite()
    return terms[sound].mean() + sound.double().mean().log() if bool(sound.any()) else terms.new_tensor(-torch.inf)


def _draws(mean: Tensor, precision: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws [N, D] of N(mu, P^-1) made of `noise` [N, D], and log det P []."""
    factor = torch.linalg.cholesky(precision)
    return mean + torch.linalg.solve_triangular(factor.T, noise.T, upper=True).T, 2 * factor.diagonal().log().sum()
