"""One operator after another: a blurred scene on a coarse detector, a decoder before the physics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.operators.base import ForwardOperator, LinearOperator

__all__ = ["Composed", "LinearlyComposed", "compose"]


class Composed(nn.Module):
    """outer(inner(x))."""

    def __init__(self, outer: ForwardOperator, inner: ForwardOperator) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner
        self.measurement_shape = outer.measurement_shape

    def forward(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`."""
        return self.outer(self.inner(value))


class LinearlyComposed(LinearOperator):
    """A B x for linear A = `outer` and B = `inner`."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        super().__init__(inner.event_shape, outer.measurement_shape)
        self.outer, self.inner = outer, inner

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        seen: Tensor = self.outer(self.inner(value))
        return seen

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        return self.inner.adjoint(self.outer.adjoint(measurement))


def compose(outer: ForwardOperator, inner: ForwardOperator) -> Composed | LinearlyComposed:
    """`outer` after `inner`, linear where both are.

    Raises:
        ValueError: what one gives is not what the other says that it takes: of linear ones of another shape, of others
            of another size.
    """
    linear = isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator)
    takes, gives = getattr(outer, "event_shape", None), inner.measurement_shape
    if takes is not None and (takes != gives if linear else torch.Size(takes).numel() != torch.Size(gives).numel()):
        raise ValueError(
            f"{type(outer).__name__} takes x of shape {takes}, but {type(inner).__name__} gives {tuple(gives)}"
        )
    if isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator):
        return LinearlyComposed(outer, inner)
    return Composed(outer, inner)
