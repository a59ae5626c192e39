"""A likelihood as it is asked: counted, given a time limit, and named where it fails or gives what it should not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from envs.likelihoods import LikelihoodError
from envs.likelihoods.base import raised
from envs.time_limit import LikelihoodTimeout, time_limit

__all__ = ["Asked", "LikelihoodCalls"]


@dataclass(slots=True, eq=False)
class LikelihoodCalls:
    """A count of the x that a likelihood was asked about: for its density, its gradient or a simulation."""

    count: int = 0
    """So far; an x counts each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """How one likelihood is asked; whatever of it is asked for is called `what` in messages."""

    name: str
    """What messages call it."""
    time_limit: float | None
    """Seconds that it may take; see `envs.time_limit`."""
    calls: LikelihoodCalls | None
    """Where x are counted; None: nowhere."""

    @contextlib.contextmanager
    def about(self, value: Tensor, what: str = "") -> Iterator[None]:
        """Counts x = `value` [N, *D]; within it time is limited, and whatever is raised by code not ours is named.

        Raises:
            LikelihoodError: something was raised.
            LikelihoodTimeout: it took too long.
        """
        if self.calls is not None:
            self.calls.count += len(value)
        asked = f"{what}{self.name}, asked for {len(value)} x,"
        try:
            with time_limit(self.time_limit, asked):
                yield
        except (LikelihoodError, LikelihoodTimeout):
            raise
        except Exception as error:
            raise LikelihoodError(f"{asked} raised {raised(error)}") from error

    def tensor(
        self,
        answer: Callable[[], object],
        value: Tensor,
        shape: tuple[int, ...],
        what: str = "",
        expected: str | None = None,
    ) -> Tensor:
        """The `answer` about x = `value`, if it is a tensor of `shape`, or of what is `expected` in words.

        Raises:
            LikelihoodError: it is something else, or it was raised.
            LikelihoodTimeout: it took too long.
        """
        with self.about(value, what):
            found = answer()
        if isinstance(found, Tensor) and found.shape == shape:
            return found
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise LikelihoodError(
            f"{what}{self.name} must give a tensor of {expected or f'shape {tuple(shape)} for {shape[0]} x'}, got {got}"
        )
