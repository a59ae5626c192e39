r"""States on the attractors of Lorenz's two models of the atmosphere, simulated.

Lorenz 1963 (J. Atmos. Sci. 20, 130), x in R^3, with the classical s = 10, r = 28, b = 8/3:

    x_1' = s (x_2 - x_1),    x_2' = x_1 (r - x_3) - x_2,    x_3' = x_1 x_2 - b x_3.

Lorenz 1996 (Predictability: a problem partly solved, ECMWF), x in R^40 on a circle, with forcing F = 8:

    x_i' = (x_i+1 - x_i-2) x_i-1 - x_i + F.

Runge-Kutta steps of order four from random starts; after the spin-up a state is taken every `SPACING` units of time.
Held-out states are of other trajectories. On the attractor time averages of derivatives vanish, so, exactly,
E x_1 x_2 = E x_1^2 = b E x_3 in the first model and E x^2 = F E x in the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.data.dataset import Dataset

__all__ = ["lorenz63", "lorenz63_derivative", "lorenz96", "lorenz96_derivative", "runge_kutta", "simulate"]

Array = NDArray[np.float64]
Derivative = Callable[[Array], Array]

FORCING = 8.0
SIZE = 40
STEP_63, STEP_96 = 0.01, 0.05  # units of time; the second is Lorenz's own, six hours of weather
SPIN_UP = 50.0
SPACING = 1.0
TRAJECTORIES = 550
HELD_OUT = 50  # of the trajectories
STATES = 40  # of each


def lorenz63_derivative(state: Array) -> Array:
    """[N, 3] x' at `state` [N, 3]."""
    x, y, z = state.T
    return np.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], axis=1)


def lorenz96_derivative(state: Array) -> Array:
    """[N, D] x' at `state` [N, D]."""
    advection = (np.roll(state, -1, axis=1) - np.roll(state, 2, axis=1)) * np.roll(state, 1, axis=1)
    return advection - state + FORCING


def runge_kutta(derivative: Derivative, state: Array, step: float) -> Array:
    """The state [N, D] after a time of `step`, with an error of order step^5 (Kutta 1901)."""
    first = derivative(state)
    second = derivative(state + 0.5 * step * first)
    third = derivative(state + 0.5 * step * second)
    fourth = derivative(state + step * third)
    return state + step / 6 * (first + 2 * second + 2 * third + fourth)


def simulate(derivative: Derivative, start: Array, step: float) -> Array:
    """[N, STATES, D] states of the trajectories from `start` [N, D], after the spin-up."""
    state, taken = start, []
    for _ in range(round(SPIN_UP / step)):
        state = runge_kutta(derivative, state, step)
    for _ in range(STATES):
        for _ in range(round(SPACING / step)):
            state = runge_kutta(derivative, state, step)
        taken.append(state)
    return np.stack(taken, axis=1)


def lorenz63() -> Dataset:
    """20,000 states of the model of 1963, and 2,000 held out."""
    start = np.random.default_rng(0).normal([0.0, 0.0, 25.0], 5.0, size=(TRAJECTORIES, 3))
    return _dataset("lorenz63", lorenz63_derivative, start, STEP_63, "Lorenz 1963, s = 10, r = 28, b = 8/3")


def lorenz96() -> Dataset:
    """20,000 states of the model of 1996 with 40 elements and forcing 8, and 2,000 held out."""
    start = np.random.default_rng(0).normal(FORCING, 1.0, size=(TRAJECTORIES, SIZE))
    return _dataset("lorenz96", lorenz96_derivative, start, STEP_96, f"Lorenz 1996, {SIZE} elements, F = {FORCING:g}")


def _dataset(name: str, derivative: Derivative, start: Array, step: float, model: str) -> Dataset:
    states = simulate(derivative, start, step)
    held_out, train = (_tensor(part) for part in (states[:HELD_OUT], states[HELD_OUT:]))
    return Dataset(
        name=name,
        train=train,
        held_out=held_out,
        split=f"{HELD_OUT} of {TRAJECTORIES} trajectories are held out, {STATES} states of each",
        source=f"simulated: {model}; Runge-Kutta 4 with step {step:g}, spin-up {SPIN_UP:g}, a state every {SPACING:g}",
        licence="none needed: computed",
    )


def _tensor(states: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(states.reshape(-1, states.shape[-1]).astype(np.float32))
