"""Any Python function as a likelihood: no gradient, numpy in and out, in a process of its own if it may hang or crash.

    def log_prob(value, measurement):  # [N, *D], [N, *Y], float64 -> [N], nats
        ...

    BlackBoxLikelihood(log_prob, measurement_shape=(3,), time_limit=10.0)

It should be normalised in y, or log Z is the evidence but for the constant that is left out.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.likelihoods.base import LikelihoodError, raised
from envs.likelihoods.gaussian import GaussianLikelihood
from envs.time_limit import LikelihoodTimeout

__all__ = ["BlackBoxLikelihood", "WithoutGradient"]

PATIENCE = 3  # calls in a row that may hang or crash before it is given up
START_SECONDS = 120.0

_log = logging.getLogger(__name__)

Function = Callable[[NDArray[np.float64], NDArray[np.float64]], Any]


class BlackBoxLikelihood:
    """log p(y | x) from a function of numpy arrays."""

    def __init__(self, function: Function, measurement_shape: tuple[int, ...], time_limit: float | None = None) -> None:
        """With `time_limit` (seconds a call) the function runs in another process, and must be importable from there.

        A call that takes longer, or crashes that process, gives NaN for its batch: such trajectories are set aside and
        counted. Three in a row end the run.
        """
        if not callable(function):
            raise ValueError(f"a black box is a function of (x [N, *D], y [N, *Y]), got {type(function).__name__}")
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit must be positive or None, got {time_limit}")
        self.function = function
        self.measurement_shape = tuple(measurement_shape)
        self.time_limit = time_limit
        self._worker: tuple[Any, Connection] | None = None
        self._failed = 0  # calls in a row

    @property
    def name(self) -> str:
        """What messages call it."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.Likelihood`.

        Raises:
            LikelihoodError: the function raised, or gave something that is not one number for each x.
            LikelihoodTimeout: it hung or crashed three times in a row.
        """
        arrays = (value.detach().cpu().double().numpy(), measurement.detach().cpu().double().numpy())
        if self.time_limit is None:
            try:
                found = self.function(*arrays)
            except Exception as error:
                raise LikelihoodError(f"{self.name} raised {raised(error)}") from error
        else:
            found = self._elsewhere(arrays)
        try:
            log_prob = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):
            raise LikelihoodError(f"{self.name} must give numbers [{len(value)}], got {type(found).__name__}") from None
        if log_prob.shape != (len(value),):
            raise LikelihoodError(
                f"{self.name} must give log p(y | x) [{len(value)}], one for each x, got shape {log_prob.shape}"
            )
        return torch.from_numpy(log_prob).to(value)

    def _elsewhere(self, arrays: tuple[NDArray[np.float64], NDArray[np.float64]]) -> object:
        """What the function gives in its own process; NaN where that hangs or ends."""
        assert self.time_limit is not None
        if self._worker is None:
            self._worker = _start(self.function, self.name)
        _, connection = self._worker
        try:
            connection.send(arrays)
            if not connection.poll(self.time_limit):
                raise TimeoutError(f"has not returned within {self.time_limit:g} s")
            failed, found = connection.recv()
        except (TimeoutError, EOFError, OSError) as error:
            self.close()
            self._failed += 1
            reason = str(error) if isinstance(error, TimeoutError) else "ended its process"
            if self._failed >= PATIENCE:
                raise LikelihoodTimeout(f"{self.name} {reason}, {self._failed} times in a row") from None
            _log.warning("%s %s; its %d trajectories are set aside", self.name, reason, len(arrays[0]))
            return np.full(len(arrays[0]), np.nan)
        self._failed = 0
        if failed:
            raise LikelihoodError(f"{self.name} raised {found}")
        return found

    def close(self) -> None:
        """Ends the process; the next call starts another."""
        if self._worker is not None:
            process, connection = self._worker
            self._worker = None
            connection.close()
            process.kill()
            process.join()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, here or in another process, starts a process of its own."""
        return self.__dict__ | {"_worker": None}

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.close()


class WithoutGradient(nn.Module):
    """A likelihood whose gradient is kept back, as it does not exist or says nothing; all else is the same."""

    def __init__(self, likelihood: GaussianLikelihood) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.measurement_shape = likelihood.measurement_shape

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.Likelihood`."""
        return self.likelihood.log_prob(value, measurement)

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `envs.likelihoods.StandardisedLikelihood`."""
        return self.likelihood.standardised(value, measurement)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `envs.likelihoods.SimulableLikelihood`."""
        return self.likelihood.sample(value, generator)


def _start(function: Function, name: str) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(START_SECONDS) and ours.recv():
            return process, ours
    except (EOFError, OSError):
        pass
    process.kill()
    raise LikelihoodError(
        f"{name} cannot be run in a process of its own: it must be a function of a module that can be imported there, "
        f"within {START_SECONDS:g} s"
    )


def _serve(function: Function, connection: Connection) -> None:
    connection.send(True)  # the time of a call does not include that of the imports
    while True:
        try:
            arrays = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[bool, object] = (False, np.asarray(function(*arrays)))
        except Exception as error:
            answer = (True, raised(error))
        connection.send(answer)
