"""All numbers that a step changes: parameters, moments and the moving average, as arrays to keep and go back to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.average import WeightAverage, flat_weights
from learner.ranks import Ranks, held

__all__ = ["Snapshot", "Weights"]

MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of each parameter, in its shape

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The numbers at one time."""

    arrays: Arrays
    """Named posterior.*, objective.* and optimizer.<index>.*, and "average", a flat vector."""
    average_updates: int
    """Updates that the average has seen."""


class Weights:
    """Posterior and objective, their optimiser, and the posterior's moving average.

    A rank that holds a part of every weight takes snapshots of its part; `whole` and `own` turn them into what a
    checkpoint has, which is the same for any number of ranks, and back.
    """

    def __init__(
        self, posterior: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer, decay: float, ranks: Ranks
    ) -> None:
        """`decay` is the average's, per update."""
        self._posterior, self._objective, self._optimizer, self._ranks = posterior, objective, optimizer, ranks
        self.average = WeightAverage(posterior, decay)
        self._first = self.average.vector.clone()

    def flat(self, *, averaged: bool) -> NDArray[np.float32]:
        """All parameters of the posterior as one vector; all ranks have to ask together."""
        own = self.average.vector if averaged else flat_weights(self._posterior)
        return self._change_vector(_numpy(own.float()), self._ranks.whole)

    def reinitialise(self) -> None:
        """Back to the first weights of the posterior, without moments; the average begins anew."""
        parts = [held(value.detach()) for value in self._posterior.parameters()]
        for value, first in zip(parts, self._first.split([value.numel() for value in parts]), strict=True):
            value.copy_(first.view_as(value))
        self._optimizer.state.clear()
        self.average = WeightAverage(self._posterior, self.average.decay)

    def snapshot(self) -> Snapshot:
        """The numbers as they are now, as far as this rank holds them."""
        arrays = {name: _numpy(held(value)) for name, value in self._named().items()}
        arrays["average"] = _numpy(self.average.vector)
        for index, state in self._optimizer.state_dict()["state"].items():
            arrays.update({f"optimizer.{index}.{name}": _numpy(held(value)) for name, value in state.items()})
        return Snapshot(arrays, self.average.updates)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot of this rank."""
        for name, value in self._named().items():
            held(value).copy_(torch.from_numpy(snapshot.arrays[name]))
        self.average.vector.copy_(torch.from_numpy(snapshot.arrays["average"]))
        self.average.updates = snapshot.average_updates
        states: dict[int, dict[str, Tensor]] = {}
        parameters = self._optimised
        for name, array in snapshot.arrays.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                value = torch.from_numpy(np.array(array))
                moment = self._ranks.like(value, parameters[int(index)]) if key in MOMENTS else value
                states.setdefault(int(index), {})[key] = moment
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})

    def check(self, arrays: Arrays) -> None:
        """Raises `ValueError` where an array of a whole snapshot is missing or has another shape, naming the first."""
        expected = {name: tuple(value.shape) for name, value in self._named().items()}
        expected["average"] = (sum(value.numel() for value in self._posterior.parameters()),)
        for name, shape in expected.items():
            found = arrays.get(name)
            if found is None or found.shape != shape:
                has = "nothing" if found is None else f"shape {found.shape}"
                raise ValueError(f"the checkpoint has {has} where {name} of shape {shape} is expected")

    def whole(self, arrays: Arrays) -> Arrays:
        """What all ranks hold, for `arrays` that this one does; all have to ask together."""
        return self._change(arrays, self._ranks.whole)

    def own(self, arrays: Arrays) -> Arrays:
        """What this rank holds of whole `arrays`."""
        return self._change(arrays, self._ranks.own)

    def _named(self) -> dict[str, Tensor]:
        modules = {"posterior": self._posterior, "objective": self._objective}
        return {
            f"{prefix}.{name}": value
            for prefix, module in modules.items()
            for name, value in module.state_dict().items()
        }

    @property
    def _optimised(self) -> list[nn.Parameter]:
        """The parameters in the order of the optimiser's state."""
        return [value for group in self._optimizer.param_groups for value in group["params"]]

    def _change(self, arrays: Arrays, change: Callable[[Tensor, Tensor], Tensor]) -> Arrays:
        of = {name: value for name, value in self._named().items() if name in arrays}
        for index, value in enumerate(self._optimised):
            of |= {name: value for key in MOMENTS if (name := f"optimizer.{index}.{key}") in arrays}
        changed = {name: change(torch.from_numpy(arrays[name]), value).numpy() for name, value in of.items()}
        return arrays | changed | {"average": self._change_vector(arrays["average"], change)}

    def _change_vector(self, vector: NDArray[Any], change: Callable[[Tensor, Tensor], Tensor]) -> NDArray[Any]:
        """The same for one number of every parameter of the posterior, in their order."""
        parameters = list(self._posterior.parameters())
        is_whole = len(vector) == sum(value.numel() for value in parameters)
        shapes = [(value if is_whole else held(value)).shape for value in parameters]
        parts = torch.from_numpy(vector).split([shape.numel() for shape in shapes])
        changed = [
            change(part.view(shape), value) for part, shape, value in zip(parts, shapes, parameters, strict=True)
        ]
        return torch.cat([value.flatten() for value in changed]).numpy()


def _numpy(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy().copy()
