"""The inverse problem: a prior, a likelihood, one or more measurements, and the exact posterior where it is known."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Protocol, overload

import torch
from torch import Tensor, nn

from diffusion.denoiser import Denoiser
from diffusion.newton import ITERATIONS, Product, newton_shift
from diffusion.posterior import GuidanceForm, LikelihoodGradient, MarginalGradient
from diffusion.prior import Prior
from envs import guides
from envs.asked import Asked, LikelihoodCalls
from envs.information import information
from envs.likelihoods import (
    DifferentiableLikelihood,
    GaussianLikelihood,
    Likelihood,
    RelaxedLikelihood,
    SimulableLikelihood,
    StandardisedLikelihood,
)
from envs.operators import LinearOperator
from envs.variational import VariationalMixtures

__all__ = ["Classes", "ExactPosterior", "InverseProblem"]


class ExactPosterior(Protocol):
    """What a closed form gives."""

    @property
    def log_partition(self) -> float:
        """The log evidence log p(y), nats."""
        ...

    @property
    def mean(self) -> Tensor:
        """[*D] posterior mean."""
        ...

    @property
    def variance(self) -> Tensor:
        """[*D] posterior variance of every element of x."""
        ...

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] exact draws of x given y."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """A partition of x that posteriors are compared by: digit classes, modes of a mixture."""

    names: tuple[str, ...]
    """One name per class."""
    probabilities: Callable[[Tensor], Tensor]
    """[N, *D] -> [N, classes], the probability of each class given x."""
    exact: Tensor | None = None
    """[M, classes] exact posterior probability of each class for every measurement, unless `InverseProblem.solve` gives
    it."""


Solve = Callable[[Tensor], tuple[ExactPosterior, Tensor | None]]


class _Solutions(Sequence[ExactPosterior]):
    """Exact posteriors in closed form: made when needed, as many are large and most processes need none."""

    def __init__(self, solve: Solve, measurements: Tensor) -> None:
        self._solve, self._measurements = solve, measurements
        self.solution = lru_cache(maxsize=4)(self._solution)

    def _solution(self, row: int) -> tuple[ExactPosterior, Tensor | None]:
        return self._solve(self._measurements[row].cpu())

    def __len__(self) -> int:
        return len(self._measurements)

    @overload
    def __getitem__(self, row: int) -> ExactPosterior: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[ExactPosterior]: ...

    def __getitem__(self, row: int | slice) -> ExactPosterior | Sequence[ExactPosterior]:
        """The exact posterior of measurement `row`."""
        if isinstance(row, slice):
            return _Solutions(self._solve, self._measurements[row])
        if not -len(self) <= row < len(self):
            raise IndexError(f"there are {len(self)} exact posteriors, asked for number {row}")
        return self.solution(int(row))[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InverseProblem:
    """p(x), p(y | x) and y."""

    name: str
    """Registered name."""
    prior: Prior
    """Frozen diffusion model of x."""
    likelihood: Likelihood
    """Normalised density of y given x."""
    measurements: Tensor
    """[M, *Y] float32; a trajectory names its measurement by row."""
    surrogate: Likelihood | None = None
    """What guides and proposals take the gradient of, where `likelihood` has none: one of the same y that is roughly as
    it is. Weights, evidence and samples stay those of `likelihood`."""
    exact: Sequence[ExactPosterior] = ()
    """Exact posterior of every measurement, or empty."""
    truth: Tensor | None = None
    """[M, *D] the x that was measured, where known."""
    classes: Classes | None = None
    """A partition of x to compare posteriors by."""
    image_shape: tuple[int, ...] | None = None
    """Height and width if x is shown as a grey image, 3 before them if in colour."""
    image: Callable[[Tensor], Tensor] | None = None
    """[N, *D] -> [N, *`image_shape`] what is shown, where x is no image itself but stands for one."""
    measurement_image: Callable[[Tensor], Tensor] | None = None
    """[*Y] -> [H, W], or [3, H, W] in colour, picture of a measurement, NaN where nothing was seen."""
    solve: Solve | None = None
    """Exact posterior of any y [*Y] and its probability of each class, where there is a closed form."""
    guidance: GuidanceForm = "gradient"
    """What `guide` gives."""
    time_limit: float | None = None
    """Seconds that a call of the likelihood, its gradient or its simulation may take; see `envs.time_limit`."""
    calls: LikelihoodCalls = field(default_factory=LikelihoodCalls)
    """Of this likelihood through this object and those made of it, the problem at other measurements or elsewhere."""
    approximations: VariationalMixtures = field(default_factory=VariationalMixtures)
    """Of this problem's posteriors and of those made of it, for the guidance that needs them."""

    def __post_init__(self) -> None:
        if not hasattr(self.likelihood, "measurement_shape") or not hasattr(self.likelihood, "log_prob"):
            raise ValueError(
                f"problem {self.name!r}: the likelihood, {type(self.likelihood).__name__}, must have "
                "measurement_shape, the shape *Y of one y, and log_prob(x [N, *D], y [N, *Y]) -> [N] in nats"
            )
        expected = self.likelihood.measurement_shape
        if self.measurements.ndim != 1 + len(expected) or tuple(self.measurements.shape[1:]) != tuple(expected):
            raise ValueError(
                f"problem {self.name!r}: measurements must be [M, {', '.join(map(str, expected))}], "
                f"got {list(self.measurements.shape)}"
            )
        if not len(self.measurements):
            raise ValueError(f"problem {self.name!r}: there must be at least one measurement, got none")
        if self.surrogate is not None:
            self._check_surrogate(self.surrogate)
        if self.guidance == "variational" and not self.shiftable:
            raise ValueError(
                f"problem {self.name!r}: likelihood_gradient variational needs a likelihood with a gradient and "
                f"residuals in standard deviations of its noise, which {type(self.guiding).__name__} has not; give the "
                "problem a surrogate, or leave likelihood_gradient at its default"
            )
        if not bool(torch.isfinite(self.measurements).all()):
            count = int((~torch.isfinite(self.measurements)).sum())
            raise ValueError(
                f"problem {self.name!r}: the measurement must be finite, got {count} NaN or infinite values"
            )
        if self.exact and len(self.exact) != len(self.measurements):
            raise ValueError(
                f"{len(self.measurements)} measurements need as many exact posteriors, got {len(self.exact)}"
            )

    def _check_surrogate(self, surrogate: object) -> None:
        if self.differentiable:
            raise ValueError(
                f"problem {self.name!r}: a surrogate is for a likelihood without a gradient, but "
                f"{type(self.likelihood).__name__} has one"
            )
        if not isinstance(surrogate, DifferentiableLikelihood):
            raise ValueError(
                f"problem {self.name!r}: the surrogate must be a likelihood with a gradient, got "
                f"{type(surrogate).__name__}"
            )
        expected, shape = (tuple(each.measurement_shape) for each in (self.likelihood, self.guiding))
        if shape != expected:
            raise ValueError(
                f"problem {self.name!r}: the surrogate must be of the same y, of shape {expected}, got one of {shape}"
            )

    def at(self, measurements: Tensor) -> InverseProblem:
        """The problem of other `measurements` [M, *Y], without what is known of its own: see `solved`."""
        classes = self.classes and replace(self.classes, exact=None)
        measurements = measurements.to(self.device)
        return replace(self, measurements=measurements, exact=(), truth=None, classes=classes)

    def solved(self) -> InverseProblem:
        """The problem with the exact posterior of every measurement, worked out when asked for, where `solve` is."""
        return self if self.solve is None else replace(self, exact=_Solutions(self.solve, self.measurements))

    @property
    def device(self) -> torch.device:
        """Where prior, likelihood and measurements are, and paths are made."""
        return self.measurements.device

    def to(self, device: torch.device | str) -> InverseProblem:
        """The problem on `device`; what is known exactly (posteriors, classes, the truth) stays on the processor.

        A likelihood moves if it is a module of torch; any other has to compute where its arguments are.
        """
        if torch.device(device) == self.device:
            return self
        prior, measurements = copy.deepcopy(self.prior).to(device), self.measurements.to(device)
        moved = replace(self, prior=prior, likelihood=_moved(self.likelihood, device), measurements=measurements)
        return moved if self.surrogate is None else replace(moved, surrogate=_moved(self.surrogate, device))

    def placement(self) -> contextlib.AbstractContextManager[object]:
        """Within it, tensors that are made without a device are on the problem's."""
        return contextlib.nullcontext() if self.device.type == "cpu" else self.device

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers on the problem's device."""
        return torch.Generator(self.device).manual_seed(seed)

    def class_probabilities(self, row: int) -> Tensor | None:
        """[classes] float64 exact posterior probability of each class for measurement `row`, where it is known."""
        if isinstance(self.exact, _Solutions):
            return self.exact.solution(row)[1]
        return None if self.classes is None or self.classes.exact is None else self.classes.exact[row].double()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return self.prior.event_shape

    @property
    def num_steps(self) -> int:
        """Number of transitions T."""
        return self.prior.num_steps

    @property
    def differentiable(self) -> bool:
        """Whether the likelihood itself has a gradient."""
        return isinstance(self.likelihood, DifferentiableLikelihood)

    @property
    def guiding(self) -> Likelihood:
        """The likelihood that guides and proposals go by: the surrogate, if there is one."""
        return self.likelihood if self.surrogate is None else self.surrogate

    @property
    def gradient(self) -> LikelihoodGradient | None:
        """The gradient of `guiding`, or None if it has none; only where `differentiable` is it that of the target."""
        guiding = self.guiding
        if not isinstance(guiding, DifferentiableLikelihood):
            return None
        gradient, asked = guiding.gradient, self._asked_guiding

        def counted(value: Tensor, measurement: Tensor) -> Tensor:
            return asked.tensor(lambda: gradient(value, measurement), value, value.shape, "the gradient of ")

        return counted

    def guide(self, state: Tensor, step: Tensor, measurement: Tensor) -> tuple[Tensor, Tensor]:
        """(x^, guidance), both [N, *D], at `state` [N, *D] and index `step` [N] for y = `measurement` [N, *Y].

        What it is says `guidance`; there must be a `gradient`, and for any other guidance the problem be `shiftable`.
        """
        gradient = self.gradient
        assert gradient is not None
        prior = self.prior
        if self.guidance == "gradient":
            return prior.pull_back(state, step, lambda denoised: gradient(denoised, measurement))
        if self.guidance == "variational":
            return guides.variational(prior, self._approximation, self.measurements, state, step, measurement)
        shifts = {"shift": guides.shifted, "repeated": guides.repeated, "repeated-shift": guides.repeated_shift}
        return shifts[self.guidance](prior, partial(self._shift, measurement), state, step)

    def _shift(self, measurement: Tensor, value: Tensor, covariance: Product, iterations: int = ITERATIONS) -> Tensor:
        gradient, guiding = self.gradient, self.guiding
        assert gradient is not None and isinstance(guiding, StandardisedLikelihood)
        with self._asked_guiding.about(value, "the residuals of "):  # which count beside the gradient
            sharpness = information(guiding, value, measurement)
        return newton_shift(gradient(value, measurement), covariance, sharpness, iterations)

    def _approximation(self, row: int) -> Denoiser:
        """That of the posterior of measurement `row`."""
        return self.approximations.of(self.prior, self.guiding, self.measurements[row], self._asked_guiding)

    @property
    def shiftable(self) -> bool:
        """Whether the guidance can be a shift, repeated or not: `guiding` has a gradient and residuals."""
        return isinstance(self.guiding, DifferentiableLikelihood) and isinstance(self.guiding, StandardisedLikelihood)

    @property
    def marginal_gradient(self) -> MarginalGradient | None:
        """The gradient of `guiding` that allows for an error of x, or None if it has none."""
        guiding = self.guiding
        if not isinstance(guiding, GaussianLikelihood) or not isinstance(guiding.operator, LinearOperator):
            return None
        asked = self._asked_guiding

        def counted(value: Tensor, measurement: Tensor, variance: Tensor) -> Tensor:
            with asked.about(value, "the gradient of "):
                return guiding.marginal_gradient(value, measurement, variance)

        return counted

    def log_likelihood(self, value: Tensor, measurement_id: Tensor) -> Tensor:
        """[N] log p(y | x) in nats, x = `value` [N, *D], y the rows `measurement_id` [N] of the measurements."""
        return self.log_likelihood_of(value, self.measurements[measurement_id])

    def log_likelihood_of(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N] log p(y | x) in nats for any y = `measurement` [N, *Y], and x = `value` [N, *D].

        Raises:
            LikelihoodError: the likelihood gave something else, or failed.
        """
        return self._asked.tensor(
            lambda: self.likelihood.log_prob(value, measurement.to(value)),
            value,
            (len(value),),
            expected=f"one number for each of the {len(value)} x, log p(y | x) [{len(value)}]",
        )

    @property
    def simulable(self) -> bool:
        """Whether measurements can be drawn."""
        return isinstance(self.likelihood, SimulableLikelihood)

    def simulate(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[N, *Y] a measurement of each x = `value` [N, *D].

        Raises:
            ValueError: the likelihood is a density only.
            LikelihoodError: it gave something else than measurements, or failed.
        """
        likelihood = self.likelihood
        if not isinstance(likelihood, SimulableLikelihood):
            raise ValueError(
                f"the likelihood of problem {self.name!r}, {type(likelihood).__name__}, has no method `sample` "
                "that measurements can be drawn with"
            )
        shape = (len(value), *likelihood.measurement_shape)
        return self._asked.tensor(lambda: likelihood.sample(value, generator), value, shape, "a simulation of ")

    def violation(self, value: Tensor, measurement_id: Tensor) -> Tensor:
        """[N] how far x = `value` [N, *D] is from where its likelihood is not zero: see `RelaxedLikelihood`."""
        likelihood, measurement = self.likelihood, self.measurements[measurement_id].to(value)
        assert isinstance(likelihood, RelaxedLikelihood)
        return self._asked.tensor(
            lambda: likelihood.violation(value, measurement), value, (len(value),), "the violation of "
        )

    @property
    def _asked(self) -> Asked:
        """The likelihood."""
        called = f"the likelihood of problem {self.name!r} ({type(self.likelihood).__name__})"
        return Asked(called, self.time_limit, self.calls)

    @property
    def _asked_guiding(self) -> Asked:
        """`guiding`; a surrogate costs none of the likelihood's calls."""
        if self.surrogate is None:
            return self._asked
        called = f"the surrogate of problem {self.name!r} ({type(self.surrogate).__name__})"
        return Asked(called, self.time_limit, None)


def _moved(likelihood: Likelihood, device: torch.device | str) -> Likelihood:
    return copy.deepcopy(likelihood).to(device) if isinstance(likelihood, nn.Module) else likelihood
