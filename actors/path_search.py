r"""Exact search in path space: a population of whole paths, moved and tempered towards the posterior of the chain.

The target is pi_beta(tau) ∝ p(tau) p(y | x)^beta, the posterior of the discrete chain at beta = 1. Two moves of
Metropolis and Hastings leave it invariant, for any kernels q and n with full support:

    suffix   s_k+1..s_T are redrawn by a kernel q given s_k,
             log w = beta log p(y | x) - sum_{j >= k} [log q(s_j+1 | s_j) - log p(s_j+1 | s_j)],
    prefix   s_0..s_k-1 are redrawn by noising s_k,
             log w = log p(s_0, ..., s_k) - sum_{j < k} log n(s_j | s_j+1),

each accepted with probability min(1, w_new / w_old). A suffix may also be redrawn in part: with q's noise
xi_j = (s_j+1 - mean of q) / std_j kept outside of a window of x's elements and drawn anew within, it is w that decides
again, for xi is standard normal under q. In many dimensions the whole of x is hardly ever accepted, a part of it is.
The prefix move keeps x and lets the early, coarse part of the
path forget how it came there; the suffix move then makes another x of it. Neither asks for the likelihood's gradient.

Tempering starts from paths of the prior, which are exact at beta = 0, and raises beta by reweighting, resampling and
moving (a sequential Monte Carlo sampler, Del Moral et al. 2006; steps chosen by the effective sample size, Zhou et al.
2016). That gives every mode its weight, as far as the prior's paths reach it, and a consistent estimate of the evidence
of the chain, the product over steps of mean_i p(y | x_i)^(beta' - beta).

The way may also begin at another chain q that is known, such as a trained posterior:

    pi_beta(tau) ∝ q(tau)^(1 - beta) [p(tau) p(y | x)]^beta = p(tau) p(y | x)^beta e^((1 - beta) R),    R = log q / p,

whose weights are powers of the importance weights p(tau) p(y | x) / q(tau), so the way is short where q is good. Log w
of a suffix and of a prefix then has (1 - beta) R of it in addition. Modes that q has no paths of are not found.

A likelihood that is zero nearly everywhere cannot be tempered: zero to any power is zero. Where it tells how far x is
from where it is not (`envs.likelihoods.RelaxedLikelihood`), v(x) >= 0, the way to it is

    pi_beta(tau) ∝ p(tau) exp(-beta / (1 - beta) v(x))    for beta < 1,

which falls off ever more steeply beside the event and becomes p(tau) p(y | x) if p(y | x) is the event's indicator: the
levels of subset simulation (Au and Beck 2001), smooth, with steps chosen by the effective sample size as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from actors.guided_kernel import GuidedKernel
from actors.known_paths import estimates_along, ratio_along
from actors.path_weights import log_acceptance, prefix_log_weight, suffix_log_weight
from actors.resampling import correlation, effective_fraction, systematic
from actors.rollout import Control, Rollout, rollout
from actors.suffix_choice import SuffixChoice, window, window_sizes
from diffusion.kernel import normal_log_prob
from diffusion.path import path_log_prior
from envs.likelihoods import RelaxedLikelihood
from envs.problem import InverseProblem

__all__ = ["PathSearch"]

FORGOTTEN, MAX_SWEEPS = 0.5, 20  # when paths have settled: the correlation with where they began, and the most sweeps


_KERNELS = ("prior", "guided", "control")
_COUNTS = ("beta", "log_partition", "adapting", "sweeps", "tempered")
_PATHS = ("states", "denoised", "log_prior", "log_noising", "log_likelihood")


class PathSearch:
    """N paths of one measurement, and the moves on them.

        search = PathSearch(problem, 0, count=1_000, generator=generator)
        while search.beta < 1:
            search.temper()
            search.settle()
        search.adapting = False
        search.sweep()          # and so on: search.samples are those of the chain's posterior

    After `temper` the paths descend from each other and are to be moved. Suffixes are proposed in turn by a kernel that
    the likelihood's gradient guides (`actors.guided_kernel`, where there is one), by the control handed to `sweep`, and
    by the prior. While `adapting`, the guided kernel is fitted to the population after every step of beta, and the
    index at which a kernel redraws is chosen by what brought paths furthest for its cost; set it to False before the
    samples that count, since moves that depend on where the paths are leave nothing invariant.
    """

    def __init__(
        self,
        problem: InverseProblem,
        measurement_id: int,
        count: int,
        *,
        generator: torch.Generator | None = None,
        start: Control | None = None,
    ) -> None:
        """`count` paths of the chain that `start` controls, at which the way to the posterior begins: by default p."""
        if count < 2:
            raise ValueError(f"a population needs at least 2 paths, got {count}")
        rows = torch.full((count,), measurement_id)
        self._begin(problem, rows, 0.0, generator, problem.gradient is not None, start)
        first = rollout(problem, start, self.measurement_id, generator=generator, guided=self._guide is not None)
        self.states, self.denoised, self.guidance = first.states, first.denoised, first.guidance
        self.log_prior, self.log_likelihood, self.log_start = first.log_prior, first.log_likelihood, first.log_ratio
        self.log_noising = self.prior.noising.path_log_prob(self.states)

    def _begin(
        self,
        problem: InverseProblem,
        measurement_id: Tensor,
        beta: float,
        generator: torch.Generator | None,
        guided: bool,
        start: Control | None = None,
    ) -> None:
        """All but the paths; without `guided` the likelihood's gradient is not asked for."""
        self.problem, self.prior, self.measurement_id = problem, problem.prior, measurement_id
        self.beta, self.log_partition = beta, 0.0
        self.adapting, self.sweeps = True, 0
        self.tempered = 0  # sweeps that there had been when beta rose last
        self.invalid = 0  # proposals whose log-likelihood was NaN or +inf; none of them is accepted
        self._generator = generator
        self._guide = GuidedKernel(problem) if guided else None
        self._start = start
        self.log_start = torch.zeros(len(measurement_id), self.prior.num_steps)  # [N, T] its log q - log p
        self._relaxed = start is None and isinstance(problem.likelihood, RelaxedLikelihood)
        self._sizes = window_sizes(self.prior.event_shape)
        self._choice = SuffixChoice(len(_KERNELS), len(self._sizes), self.prior.num_steps)

    @property
    def samples(self) -> Tensor:
        """[N, *D] the clean ends x."""
        return self.states[:, -1]

    def paths(self, acceptance: float | None = None, *, guided: bool = True) -> Rollout:
        """The population as trajectories; b is pi_beta with the current estimate of its evidence.

        `guided` False leaves the guidance out, for posteriors that do not use it.
        """
        bridge, power = self._bridge(self.beta, self.samples, self.log_likelihood)
        ratio = power * bridge.double() + (1 - self.beta) * self.log_start.double().sum(1)
        return self._rollout(ratio - self.log_partition, acceptance, guided)

    def _rollout(self, log_behaviour_ratio: Tensor, acceptance: float | None, guided: bool) -> Rollout:
        return Rollout(
            states=self.states.clone(),
            denoised=self.denoised.clone(),
            guidance=self.guidance.clone() if guided and self.guidance is not None else None,
            log_prior=self.log_prior.clone(),
            log_ratio=torch.zeros_like(self.log_prior),
            log_behaviour_ratio=log_behaviour_ratio,
            log_likelihood=self.log_likelihood.clone(),
            measurement_id=self.measurement_id.clone(),
            acceptance=acceptance,
        )

    def temper(self, effective_sample_size: float = 0.5) -> float:
        """Raises beta until the weights' effective sample size is that fraction, at most to 1; resamples; new beta.

        The fraction is of the paths whose likelihood is not zero; of the others none is left.

        Raises:
            ValueError: no path has a finite log-likelihood.
        """
        if self.beta >= 1:
            return self.beta
        log_likelihood = self.log_likelihood.double()
        log_likelihood = torch.where(torch.isfinite(log_likelihood), log_likelihood, -math.inf)
        bridge, power = self._bridge(self.beta, self.samples, log_likelihood)
        bridge = bridge - self.log_start.double().sum(1)
        bridge = torch.where(bridge.isnan(), -math.inf, bridge)  # one number that is none would take all with it
        possible = float((bridge > -math.inf).double().mean())
        if not possible:
            invalid = int((~(self.log_likelihood < math.inf)).sum())
            reason = (
                f": it is NaN or +inf on {invalid} of them" if invalid else ", they do not reach where it is finite"
            )
            raise ValueError(f"not one of {len(log_likelihood)} paths has a finite log p(y | x){reason}")

        def log_weight(beta: float) -> Tensor:
            if not self._relaxed:
                return bridge * (beta - power)
            weight = log_likelihood - power * bridge if beta == 1 else bridge * (beta / (1 - beta) - power)
            return torch.where(bridge > -math.inf, weight, -math.inf)

        wanted = effective_sample_size * possible  # no beta above zero has more than the possible paths
        low, high = self.beta, 1.0
        if not effective_fraction(log_weight(high)) >= wanted:  # NaN: no path is possible there yet
            while high - low > 1e-6 * high:
                middle = 0.5 * (low + high)
                enough = effective_fraction(log_weight(middle)) >= wanted
                low, high = (middle, high) if enough else (low, middle)
        weight = log_weight(high)
        self.log_partition += float(weight.logsumexp(0)) - math.log(len(weight))
        self.beta, self.tempered = high, self.sweeps
        if high == 1:  # where the way began does not matter any more
            self._start, self.log_start = None, torch.zeros_like(self.log_start)
        self._take(systematic(weight.softmax(0), self._generator))
        if self.adapting:
            self.fit_guide()
        return self.beta

    def sweep(self, control: Control | None = None) -> float:
        """A suffix move, then a prefix move; the share of suffixes that was accepted.

        `control` takes its turn as the kernel that proposes suffixes. The index of either move is drawn for all paths
        together, and so is the size of the window, but not its place.
        """
        kernels = self.kernels(control)
        order = [*kernels, *kernels, "prior"]
        name = order[self.sweeps % len(order)]
        self.sweeps += 1
        row = _KERNELS.index(name)
        size, first = self._choice.draw(row, self._generator)
        before = self.samples.clone()
        accepted = self.redraw_suffix(first, kernels.get(name), self._sizes[size])
        if self.adapting:
            moved = (self.samples - before).flatten(1).square().sum(1).double().mean()
            self._choice.learn(row, size, first, float(moved))
        self.renoise_prefix(1 + int(torch.randint(self.prior.num_steps, (), generator=self._generator)))
        return float(accepted.double().mean())

    def settle(
        self,
        control: Control | None = None,
        sweeps: int | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> float:
        """So many sweeps, or as many as it takes to forget; the mean share of suffixes accepted.

        Paths have mostly forgotten where they were when their correlation with then is below FORGOTTEN, that of x and
        that of the log-likelihood, which tells of the finest scale. They are given MAX_SWEEPS for it, and less if
        `stop` says so. When to stop is told by the paths themselves, so it is for large populations, where the number
        of sweeps hardly depends on chance, that this leaves the target invariant; a fixed number always does.
        """
        samples, log_likelihood = self.samples.clone(), self.log_likelihood.clone()
        accepted: list[float] = []
        while len(accepted) < (sweeps or MAX_SWEEPS):
            accepted.append(self.sweep(control))
            if stop() or (sweeps is None and self._have_forgotten(samples, log_likelihood)):
                break
        return sum(accepted) / len(accepted)

    def _have_forgotten(self, samples: Tensor, log_likelihood: Tensor) -> bool:
        of_samples = correlation(samples.flatten(1), self.samples.flatten(1))
        of_likelihood = correlation(log_likelihood[:, None], self.log_likelihood[:, None])
        return max(of_samples, of_likelihood) < FORGOTTEN

    def kernels(self, control: Control | None = None) -> dict[str, Control]:
        """Kernels that propose suffixes beside the prior, by name."""
        kernels = {"guided": self._guide, "control": control}
        return {name: kernel for name, kernel in kernels.items() if kernel is not None}

    def log_weights(self, control: Control) -> tuple[Tensor, Tensor]:
        """Lw at beta = 1, [N] float64 each: of as many fresh paths drawn by `control`, and of the population's."""
        guided = self._guide is not None
        fresh = rollout(self.problem, control, self.measurement_id, generator=self._generator, guided=guided)
        own = ratio_along(self.problem, control, self.measurement_id, self.states, self.denoised, self.guidance)[0]
        return fresh.log_weight, self.log_likelihood.double() - own.double().sum(1)

    def fit_guide(self) -> None:
        """Fits the guided kernel to the population as it is, where the likelihood has a gradient."""
        if self._guide is not None and self.guidance is not None:
            measurement = self.problem.measurements[self.measurement_id]
            self._guide.fit(self.states, self.denoised, self.guidance, measurement)

    def redraw_suffix(self, first: int, control: Control | None = None, sides: tuple[int, ...] | None = None) -> Tensor:
        """[N] which paths took a new suffix from index `first` on; of x only a window of `sides`, if given."""
        count, shape = len(self.states), self.prior.event_shape
        partly = sides is not None and sides != shape
        ratio, noise = ratio_along(
            self.problem,
            control,
            self.measurement_id,
            self.states[:, first:],
            self.denoised[:, first:],
            None if self.guidance is None else self.guidance[:, first:],
            first=first,
            with_noise=partly,
        )
        fresh = rollout(
            self.problem,
            control,
            self.measurement_id,
            generator=self._generator,
            guided=self._guide is not None,
            start=self.states[:, first],
            first=first,
            noise=noise,
            renewed=window(shape, sides, count, self._generator) if sides is not None and partly else None,
        )
        self.invalid += int((~(fresh.log_likelihood < math.inf)).sum())
        known = control == self._start  # bound methods are equal and not the same
        start = fresh.log_ratio if known else self._of_start(fresh.states, fresh.denoised, fresh.guidance, first)
        reached = self._bridge(self.beta, fresh.states[:, -1], fresh.log_likelihood)
        new = suffix_log_weight(fresh.log_ratio, *reached, start)
        held = self._bridge(self.beta, self.samples, self.log_likelihood)
        old = suffix_log_weight(ratio, *held, self.log_start[:, first:])
        accepted = self._accept(new, old)
        log_noising = self.prior.noising.path_log_prob(fresh.states, first)
        self._adopt(accepted, slice(first, None), fresh.denoised, fresh.guidance, fresh.log_prior, log_noising, start)
        self.states[:, first:][accepted] = fresh.states[accepted]
        self.log_likelihood[accepted] = fresh.log_likelihood[accepted]
        return accepted

    def renoise_prefix(self, last: int) -> Tensor:
        """[N] which paths took a new prefix up to index `last`, the state there being kept."""
        states = self.prior.noising.sample_path(self.states[:, last], self._generator, last)
        denoised, guidance = estimates_along(self.problem, states, self.measurement_id, self._guide is not None)
        log_prior = path_log_prior(self.prior, states, denoised)
        log_noising = self.prior.noising.path_log_prob(states)
        start = self._of_start(states, denoised, guidance)
        new = prefix_log_weight(self._log_base(states), log_prior, log_noising, self.beta, start)
        old = prefix_log_weight(
            self._log_base(self.states),
            self.log_prior[:, :last],
            self.log_noising[:, :last],
            self.beta,
            self.log_start[:, :last],
        )
        accepted = self._accept(new, old)
        self._adopt(accepted, slice(0, last), denoised, guidance, log_prior, log_noising, start)
        self.states[:, : last + 1][accepted] = states[accepted]
        return accepted

    def _bridge(self, beta: float, samples: Tensor, log_likelihood: Tensor) -> tuple[Tensor, float]:
        """(f [N], c): at `beta` paths of the prior count exp(c f), for ends `samples` [N, *D]."""
        if not self._relaxed or beta == 1:
            return log_likelihood, beta
        return -self.problem.violation(samples, self.measurement_id), beta / (1 - beta)

    def _of_start(self, states: Tensor, denoised: Tensor, guidance: Tensor | None, first: int = 0) -> Tensor:
        """[N, K] log q - log p of the chain at which the way began, of transitions from index `first` on."""
        return ratio_along(self.problem, self._start, self.measurement_id, states, denoised, guidance, first=first)[0]

    def _adopt(
        self,
        accepted: Tensor,
        steps: slice,
        denoised: Tensor,
        guidance: Tensor | None,
        log_prior: Tensor,
        log_noising: Tensor,
        log_start: Tensor,
    ) -> None:
        """Takes over what belongs to the transitions `steps` of the `accepted` paths."""
        self.denoised[:, steps][accepted] = denoised[accepted]
        self.log_prior[:, steps][accepted] = log_prior[accepted]
        self.log_noising[:, steps][accepted] = log_noising[accepted]
        self.log_start[:, steps][accepted] = log_start[accepted]
        if self.guidance is not None and guidance is not None:
            self.guidance[:, steps][accepted] = guidance[accepted]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, scalars) that `restore` makes the same population of; the random stream is the owner's.

        Raises:
            ValueError: it is on its way from another chain than the prior, which is not written down.
        """
        if self._start is not None:
            raise ValueError(f"a population cannot be written down on its way from a control, got beta {self.beta:.3g}")
        tensors = {name: getattr(self, name) for name in _PATHS}
        tensors |= {"tried": self._choice.tried, "gained": self._choice.gained}
        if self._guide is not None and self.guidance is not None:
            tensors |= {"guidance": self.guidance, "gain": self._guide.gain}
        scalars = {name: getattr(self, name) for name in _COUNTS}
        return tensors, scalars

    def split(self, size: int) -> list[Self]:
        """The paths in populations of `size`, which move on by themselves from now on; N must be a multiple of it."""
        tensors, scalars = self.state_dict()
        parts = {
            name: value.split(size) if name in (*_PATHS, "guidance") else [value] * (len(self.states) // size)
            for name, value in tensors.items()
        }
        return [
            type(self).restore(
                self.problem,
                int(self.measurement_id[0]),
                {name: part[index].clone() for name, part in parts.items()},
                scalars,
                self._generator,
            )
            for index in range(len(self.states) // size)
        ]

    @classmethod
    def restore(
        cls,
        problem: InverseProblem,
        measurement_id: int,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, Any],
        generator: torch.Generator | None = None,
    ) -> Self:
        """The population of a `state_dict`; draws go on from `generator`."""
        search = cls.__new__(cls)
        rows = torch.full((len(tensors["states"]),), measurement_id)
        search._begin(problem, rows, float(scalars["beta"]), generator, guided="gain" in tensors)
        if search._guide is not None:
            search._guide.gain = tensors["gain"]
        search.guidance = tensors.get("guidance")
        search._choice.tried, search._choice.gained = tensors["tried"], tensors["gained"]
        for name in _PATHS:
            setattr(search, name, tensors[name])
        search.log_partition = float(scalars["log_partition"])
        search.adapting, search.sweeps = bool(scalars["adapting"]), int(scalars["sweeps"])
        search.tempered = int(scalars["tempered"])
        return search

    def _accept(self, new: Tensor, old: Tensor) -> Tensor:
        uniform = torch.rand(len(new), generator=self._generator, dtype=torch.float64)
        return uniform.log() < log_acceptance(new, old)

    def _take(self, rows: Tensor) -> None:
        for name in (*_PATHS, "log_start"):
            setattr(self, name, getattr(self, name)[rows])
        self.guidance = None if self.guidance is None else self.guidance[rows]

    def _log_base(self, states: Tensor) -> Tensor:
        sigma = self.prior.sigma[:1].expand(len(states))
        return normal_log_prob(states[:, 0], torch.zeros_like(states[:, 0]), sigma)
