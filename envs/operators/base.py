"""What a forward operator is, from x to the noiseless measurement, and what a linear one can do besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["ForwardOperator", "LinearOperator", "Spectrum", "positive_shape"]

MAX_DENSE = 2**26  # numbers of a matrix that is made of an operator: half a gigabyte in float64


class ForwardOperator(Protocol):
    """A map from x [N, *D] to noiseless measurements [N, *Y], differentiable where the physics is."""

    measurement_shape: tuple[int, ...]
    """*Y."""

    def __call__(self, value: Tensor) -> Tensor:
        """[N, *Y] noiseless measurements of `value` [N, *D]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """A A^T = U diag(values) U^T with orthonormal U. Singular values of A are the roots of `values`."""

    values: Tensor
    """[Y] float64, not negative."""
    analyse: Callable[[Tensor], Tensor]
    """y [N, *Y] -> U^T y [N, Y]."""
    synthesise: Callable[[Tensor], Tensor]
    """[N, Y] -> U of it [N, *Y]."""

    def solve(self, measurement: Tensor, scale: Tensor | float, shift: Tensor | float) -> Tensor:
        """(scale A A^T + shift I)^-1 y [N, *Y] for y = `measurement`; `scale` and `shift` are numbers or [N]."""
        terms = [value[:, None].to(self.values) if isinstance(value, Tensor) else value for value in (scale, shift)]
        precision = 1 / (terms[0] * self.values + terms[1])
        return self.synthesise(self.analyse(measurement) * precision.to(measurement))


class LinearOperator(nn.Module, ABC):
    """y = A x, with the adjoint A^T: <A x, y> = <x, A^T y> for all x and y."""

    def __init__(self, event_shape: tuple[int, ...], measurement_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = positive_shape("event_shape", event_shape)
        """*D."""
        self.measurement_shape = positive_shape("measurement_shape", measurement_shape)
        """*Y."""

    @abstractmethod
    def forward(self, value: Tensor) -> Tensor:
        """A x [N, *Y] for x = `value` [N, *D]."""

    @abstractmethod
    def adjoint(self, measurement: Tensor) -> Tensor:
        """A^T y [N, *D] for y = `measurement` [N, *Y]."""

    @property
    def has_matrix(self) -> bool:
        """Whether A is small enough for `as_matrix`: 2^26 numbers."""
        return torch.Size(self.measurement_shape).numel() * torch.Size(self.event_shape).numel() <= MAX_DENSE

    def as_matrix(self) -> Tensor:
        """A as [Y, D] float64, for x and y flattened; of small operators (`has_matrix`).

        Raises:
            ValueError: it would have more than 2^26 numbers.
        """
        rows, columns = torch.Size(self.measurement_shape).numel(), torch.Size(self.event_shape).numel()
        if not self.has_matrix:
            raise ValueError(
                f"{type(self).__name__} as a matrix of {rows} x {columns} numbers is more than the {MAX_DENSE} that "
                "are made; use its methods forward, adjoint and spectrum"
            )
        device = next((buffer.device for buffer in self.buffers()), None)
        unit = torch.eye(columns, dtype=torch.float64, device=device).reshape(columns, *self.event_shape)
        with torch.no_grad():
            return torch.cat([self(part).flatten(1) for part in unit.split(256)]).T.contiguous()

    def spectrum(self) -> Spectrum:
        """The eigenvalues and eigenvectors of A A^T; of an operator without a shorter way those of its matrix."""
        matrix = self.as_matrix()
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        shape = self.measurement_shape
        return Spectrum(
            values.clamp_min(0),
            lambda value: value.flatten(1) @ vectors.to(value),
            lambda value: (value @ vectors.to(value).T).reshape(len(value), *shape),
        )

    def pseudoinverse(self, measurement: Tensor, tolerance: float = 1e-10) -> Tensor:
        """A^+ y [N, *D] for y = `measurement` [N, *Y]; values of A A^T below `tolerance` of the largest are zero."""
        spectrum = self.spectrum()
        values = spectrum.values
        inverse = torch.where(values > tolerance * values.max(), 1 / values.clamp_min(1e-300), 0.0)
        return self.adjoint(spectrum.synthesise(spectrum.analyse(measurement) * inverse.to(measurement)))


def positive_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`, of which every size must be at least one."""
    if not all(size >= 1 for size in shape):
        raise ValueError(f"{name} must be of sizes of at least 1, got {tuple(shape)}")
    return tuple(shape)
