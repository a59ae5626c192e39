"""Reads a configuration, of a run or of a prior: a YAML file, and `--section.key value` on the command line.

A configuration is data. It is checked once, here: unknown keys are refused with the nearest known one, types must fit,
and every section validates its own values (`system.config`, `system.prior_config`). A section may name a function, and
its other keys are then that function's keyword arguments (`Choice`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from diffusion.registry import network_factory
from envs.data import dataset_factory
from envs.registry import problem_factory
from system.config import ProblemConfig, RunConfig
from system.errors import ConfigError
from system.prior_config import DataConfig, NetworkConfig, PriorConfig

__all__ = ["CHOICES", "Choice", "changed", "config_from_tree", "import_plugins", "load_config"]

T = TypeVar("T")
C = TypeVar("C", RunConfig, PriorConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A section that names a function; its other keys are the arguments of that function that have defaults."""

    name: str
    """The key that names it."""
    section: Callable[..., Any]
    """Dataclass of that key and `options`."""
    factory: Callable[[str], Callable[..., object]]
    """The function of a name; a ValueError if there is none."""

    def options_type(self, name: str, place: str, source: str) -> type:
        """A dataclass of the section's keys, so that the arguments are checked like all others."""
        try:
            factory = self.factory(name)
        except ValueError as error:
            raise ConfigError(f"{source}: {place}.{self.name}: {error}") from None
        hints = typing.get_type_hints(factory)
        entries: list[Any] = [(self.name, str, field(default=name))]
        for parameter in inspect.signature(factory).parameters.values():
            if parameter.default is not parameter.empty:
                entries.append((parameter.name, hints[parameter.name], field(default=parameter.default)))
        return dataclasses.make_dataclass("Options", entries, frozen=True, kw_only=True)

    def chosen(self, options: Any) -> Any:  # noqa: ANN401 - a dataclass made here, and the section, whichever it is
        """The section of an instance of `options_type`."""
        values = dataclasses.asdict(options)
        return self.section(**{self.name: values.pop(self.name)}, options=values)


CHOICES: dict[type, dict[str, Choice]] = {
    RunConfig: {"problem": Choice(name="name", section=ProblemConfig, factory=problem_factory)},
    PriorConfig: {
        "data": Choice(name="name", section=DataConfig, factory=dataset_factory),
        "network": Choice(name="kind", section=NetworkConfig, factory=network_factory),
    },
}
"""The sections of a configuration that name a function."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: Sequence[str] = (), kind: type[C] = RunConfig) -> C:  # type: ignore[assignment]
    """The configuration, of `kind`, in the YAML file `path`, changed by `overrides` (`--section.key value ...`).

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}; the ones that ship are in {kind.PLACE}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(tree).__name__}")
    return changed(config_from_tree(tree, str(path), _words(overrides), kind), overrides)


def changed(config: C, overrides: Sequence[str]) -> C:
    """`config` with `overrides` (`--section.key value ...`)."""
    if not overrides:
        return config
    from system.flags import override

    return override(config, _words(overrides))


def _words(overrides: Sequence[str]) -> list[str]:
    """--key=value as two words, as the search for plug-ins and the problem's name expects; null as tyro spells it."""
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return ["None" if word == "null" else word for word in words]


def config_from_tree(
    tree: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    kind: type[C] = RunConfig,  # type: ignore[assignment]
) -> C:
    """The configuration, of `kind`, in a parsed YAML tree; `source` names it in errors."""
    tree = dict(tree)
    if kind is RunConfig and "data" in tree:
        raise ConfigError(f"{source}: describes the training of a prior, which `rtb prior train` reads")
    if kind is PriorConfig and "problem" in tree:
        raise ConfigError(f"{source}: describes a run with a problem, which `rtb train` reads")
    import_plugins(_plugins(tree, source, overrides))
    for place, choice in CHOICES[kind].items():
        section = tree.get(place, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{source}: {place} must be a mapping with a {choice.name}, got {section!r}")
        name = section.get(choice.name, getattr(choice.section(), choice.name))
        if not isinstance(name, str):
            raise ConfigError(f"{source}: {place}.{choice.name} must be text, got {name!r}")
        options: Any = _build(choice.options_type(name, place, source), section, place, source)
        values = dataclasses.asdict(options)
        tree[place] = {choice.name: values.pop(choice.name), "options": values}
    return _build(kind, tree, "", source)


def import_plugins(names: Sequence[str]) -> None:
    """Imports modules that register problems, from the current folder as from anywhere Python looks."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            where = "neither in the current folder nor where Python looks (PYTHONPATH)"
            raise ConfigError(f"plugins: cannot import {name!r}: module {error.name!r} is {where}") from error
        except Exception as error:  # whatever the user's module does when it is imported
            raise ConfigError(f"plugins: cannot import {name!r}: {type(error).__name__}: {error}") from error


def _plugins(tree: Mapping[str, Any], source: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """Plug-ins must be imported before the problem's options are known, so the flag is read ahead of the others."""
    named = tree.get("plugins", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"{source}: plugins must be a list of module names, got {named!r}")
    if "--plugins" in overrides:
        rest = list(overrides)[list(overrides).index("--plugins") + 1 :]
        named = []
        for word in rest:
            if word.startswith("--"):
                break
            named.append(word)
    return tuple(named)


def _build(kind: type[T], tree: Mapping[str, Any], prefix: str, source: str) -> T:
    """An instance of the dataclass `kind` from a mapping, strictly."""
    hints = typing.get_type_hints(kind)
    known = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {name!r}; {hint}")
        values[key] = _convert(hints[key], value, name, source)
    try:
        return kind(**values)
    except ValueError as error:
        section = f"{prefix}: " if prefix not in str(error) else ""
        raise ConfigError(f"{source}: {section}{error}") from None


def _convert(hint: Any, value: Any, name: str, source: str) -> Any:  # noqa: ANN401 - any annotation, any YAML value
    """`value` as the annotated type `hint`, or a ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, name, source)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        mappings = [kind for kind in kinds if typing.get_origin(kind) is dict]
        return _convert((mappings if mappings and isinstance(value, Mapping) else kinds)[0], value, name, source)
    if origin is Literal and value in arguments:
        return value
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(arguments[1], entry, f"{name}.{key}", source) for key, entry in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], entry, name, source) for entry in value)
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            return float(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", None) or str(hint)
    if dataclasses.is_dataclass(hint) or origin is dict:
        expected = "a mapping"
    if origin is Literal:
        expected = "one of " + ", ".join(map(str, arguments))
    raise ConfigError(f"{source}: {name} must be {expected}, got {value!r}")
