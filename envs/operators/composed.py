"""One operator after another: a blurred scene on a coarse detector, a decoder before the physics."""

from __future__ import annotations

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
        ValueError: both are linear, and what one gives is not of the shape that the other takes.
    """
    if not (isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator)):
        return Composed(outer, inner)
    if outer.event_shape != inner.measurement_shape:
        raise ValueError(
            f"{type(outer).__name__} takes x of shape {outer.event_shape}, but {type(inner).__name__} gives "
            f"{inner.measurement_shape}"
        )
    return LinearlyComposed(outer, inner)
