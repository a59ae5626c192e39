"""What a likelihood p(y | x) is: always normalised in y, so that log Z = log p(y) is the evidence."""

from __future__ import annotations

import traceback
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from envs.operators import ForwardOperator

__all__ = [
    "AutogradLikelihood",
    "DifferentiableLikelihood",
    "ExpectedLikelihood",
    "Likelihood",
    "LikelihoodError",
    "RelaxedLikelihood",
    "SimulableLikelihood",
    "StandardisedLikelihood",
    "noiseless",
    "raised",
]


class LikelihoodError(ValueError):
    """A likelihood gave something that is no log density of N pairs, or failed."""


class Likelihood(Protocol):
    """A log density of the measurement given x."""

    measurement_shape: tuple[int, ...]
    """*Y, the shape of one measurement."""

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N] log p(y | x) in nats for x = `value` [N, *D] and y = `measurement` [N, *Y]."""
        ...


@runtime_checkable
class DifferentiableLikelihood(Protocol):
    """A likelihood that also gives its gradient with respect to x."""

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, *D] gradient of log p(y | x) at x = `value`."""
        ...


@runtime_checkable
class StandardisedLikelihood(Protocol):
    """A likelihood that knows how far y is from what x would give, in standard deviations of the noise."""

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N, *Y] (y - E[y | x]) / std(y | x); of correlated noise, whitened."""
        ...


@runtime_checkable
class ExpectedLikelihood(Protocol):
    """A likelihood whose noise varies with x, and that knows E[y | x]."""

    def expected(self, value: Tensor) -> Tensor:
        """[N, *Y] E[y | x] for x = `value` [N, *D]."""
        ...


@runtime_checkable
class SimulableLikelihood(Protocol):
    """A likelihood that measurements can be drawn from."""

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[N, *Y] a measurement of each x = `value` [N, *D]."""
        ...


@runtime_checkable
class RelaxedLikelihood(Protocol):
    """A likelihood that is zero in places, and tells how far it is from there to where it is not."""

    def violation(self, value: Tensor, measurement: Tensor) -> Tensor:
        """[N] zero where p(y | x) > 0, and above zero and finite elsewhere, for x = `value` [N, *D]; any unit."""
        ...


class AutogradLikelihood(nn.Module):
    """A likelihood of which autograd takes the gradient."""

    measurement_shape: tuple[int, ...]

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        raise NotImplementedError

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`."""
        with torch.enable_grad():
            leaf = value.detach().requires_grad_(True)
            log_prob = self.log_prob(leaf, measurement).sum()
            if not log_prob.requires_grad:
                raise LikelihoodError(
                    f"{type(self).__name__} has no gradient, as what it does to x is not all in torch: write it so, or "
                    "keep the gradient back (envs.likelihoods.WithoutGradient)"
                )
            (gradient,) = torch.autograd.grad(log_prob, leaf)
        return gradient


def noiseless(operator: ForwardOperator, value: Tensor) -> Tensor:
    """[N, *Y] A(x) for x = `value` [N, *D]: of this shape, or it would be stretched to y's without a word.

    Raises:
        LikelihoodError: `operator` gave something else than its measurement_shape says, or says that it takes x of
            another size.
    """
    takes = getattr(operator, "event_shape", None)
    if takes is not None and value.shape[1:].numel() != torch.Size(takes).numel():
        raise LikelihoodError(
            f"the forward operator {type(operator).__name__} takes x of shape {tuple(takes)}, as its event_shape says, "
            f"got {tuple(value.shape[1:])}"
        )
    seen: object = operator(value)
    expected = (len(value), *operator.measurement_shape)
    if not isinstance(seen, Tensor) or tuple(seen.shape) != expected:
        got = f"shape {tuple(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
        raise LikelihoodError(
            f"the forward operator {type(operator).__name__} must give a tensor of shape {expected} for {len(value)} "
            f"x, as its measurement_shape says, got {got}"
        )
    return seen


def raised(error: Exception) -> str:
    """One line for `error`: what it is, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f'{text} (File "{place.filename}", line {place.lineno})'
