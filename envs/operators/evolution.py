r"""Some elements of the state of a system at later times: the forward operator of an unknown initial state.

    x' = f(x),   x(0) = x,   A(x)_j = x(t_j)_seen,   t_j = j dt n,  j = 1..m,

by Runge-Kutta steps of order four and length dt (Kutta 1901), n of them between two times. Gradients go back through
the steps, so they are those of the discrete solution, exactly (discretise, then optimise).

In a chaotic system the state at t depends on the initial one by a factor of about exp(lambda t), lambda being its
largest Lyapunov exponent: 1 / lambda is the Lyapunov time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Derivative", "Evolution", "runge_kutta_step"]

Derivative = Callable[[Tensor], Tensor]
"""f: x [N, D] to its derivative by time [N, D]."""


def runge_kutta_step(derivative: Derivative, state: Tensor, step: float) -> Tensor:
    """[N, D] the state a time of `step` after `state` [N, D], with an error of order step^5."""
    first = derivative(state)
    second = derivative(torch.add(state, first, alpha=0.5 * step))
    third = derivative(torch.add(state, second, alpha=0.5 * step))
    fourth = derivative(torch.add(state, third, alpha=step))
    return torch.add(state, first + 2 * (second + third) + fourth, alpha=step / 6)


class Evolution(nn.Module):
    """A(x): the elements `seen` at `times` times, `stride` steps of length `step` apart."""

    def __init__(
        self,
        derivative: Derivative,
        dim: int,
        seen: Sequence[int],
        *,
        step: float,
        stride: int,
        times: int,
        bound: float = 1e3,
    ) -> None:
        """`step` is dt, in the system's unit of time; `bound` in the units of x.

        A number further from zero than `bound` is kept at it after every step: far from where the system lives a step
        of Runge-Kutta can overflow, and what it gives there is no solution anyway. The gradient is zero there.

        Raises:
            ValueError: an element that x has not, or no time to look at it.
        """
        super().__init__()
        if not seen or not all(0 <= index < dim for index in seen):
            raise ValueError(f"the elements that are seen must be some of the {dim} of x, 0..{dim - 1}, got {[*seen]}")
        if stride < 1 or times < 1 or not step > 0:
            raise ValueError(f"step must be positive, stride and times at least 1, got {step}, {stride} and {times}")
        self.derivative, self.step, self.stride, self.bound = derivative, step, stride, bound
        self.event_shape = (dim,)
        self.measurement_shape: tuple[int, ...] = (times, len(seen))
        """[times, elements]."""
        self.register_buffer("seen", torch.as_tensor(list(seen)), persistent=False)

    seen: Tensor

    @property
    def times(self) -> Tensor:
        """[times] float64 when the system is seen, after the start."""
        return self.step * self.stride * torch.arange(1, self.measurement_shape[0] + 1, dtype=torch.float64)

    def forward(self, value: Tensor) -> Tensor:
        """See `ForwardOperator`: [N, times, elements]."""
        state, found = value, []
        for _ in range(self.measurement_shape[0]):
            for _ in range(self.stride):
                state = runge_kutta_step(self.derivative, state, self.step).clamp(-self.bound, self.bound)
            found.append(state.index_select(1, self.seen))
        return torch.stack(found, 1)
