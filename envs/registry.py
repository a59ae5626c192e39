"""Problems by name.

A problem is a function with typed, defaulted keyword arguments that returns an `InverseProblem`; registering it makes
its arguments configuration keys and its name a gymnasium environment:

    @register("my-problem")
    def my_problem(*, noise_std: float = 0.1) -> InverseProblem: ...
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping

from diffusion.registry import nearest
from envs.problem import InverseProblem

__all__ = ["make_problem", "on_register", "problem_factory", "problem_names", "register"]

Factory = Callable[..., InverseProblem]

_FACTORIES: dict[str, Factory] = {}
_LISTENERS: list[Callable[[str], None]] = []


def register(name: str) -> Callable[[Factory], Factory]:
    """Registers the decorated factory under `name`.

    Raises:
        ValueError: the name is taken or has characters that an environment's name cannot have, or an argument has no
            default or no annotation.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"the name of a problem must be of letters, digits, '_', '-' and '.', got {name!r}")

    def decorate(factory: Factory) -> Factory:
        taken = _FACTORIES.get(name, factory)
        if (taken.__module__, taken.__qualname__) != (factory.__module__, factory.__qualname__):
            raise ValueError(f"a problem named {name!r} is registered already, by {taken.__module__}")
        for parameter in inspect.signature(factory).parameters.values():
            if parameter.default is parameter.empty or parameter.annotation is parameter.empty:
                raise ValueError(f"argument {parameter.name!r} of problem {name!r} needs a type and a default")
        _FACTORIES[name] = factory
        for listener in _LISTENERS:
            listener(name)
        return factory

    return decorate


def on_register(listener: Callable[[str], None]) -> None:
    """Calls `listener` with the name of every problem, those there are now and those registered later."""
    _LISTENERS.append(listener)
    for name in problem_names():
        listener(name)


def problem_names() -> tuple[str, ...]:
    """Names of all registered problems, sorted."""
    return tuple(sorted(_FACTORIES))


def problem_factory(name: str) -> Factory:
    """The function registered under `name`.

    Raises:
        ValueError: no such problem; the message names the nearest.
    """
    if name not in _FACTORIES:
        raise ValueError(f"unknown problem {name!r}; {nearest(name, problem_names())}")
    return _FACTORIES[name]


def make_problem(name: str, options: Mapping[str, object] | None = None) -> InverseProblem:
    """The problem called `name` with `options` for its factory's keyword arguments.

    Raises:
        ValueError: unknown problem or option (the message names the nearest), or an option the factory refuses.
    """
    factory = problem_factory(name)
    known = inspect.signature(factory).parameters
    for key in options or {}:
        if key not in known:
            raise ValueError(f"unknown option {key!r} of problem {name!r}; {nearest(key, known)}")
    return factory(**(options or {}))
