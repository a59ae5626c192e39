"""The command line's `--section.key value`, and its help: tyro makes both of the configuration's dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from system.config import RunConfig
from system.config_file import CHOICES, C, load_config
from system.errors import ConfigError

__all__ = ["help_text", "override"]


def help_text(path: Path | None = None, kind: type[C] = RunConfig) -> str:  # type: ignore[assignment]
    """Every key with its type, meaning and default, those of the configuration file `path` if given."""
    config = kind() if path is None else load_config(path, (), kind)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        override(config, ["--help"])
    return output.getvalue()


def override(config: C, overrides: list[str]) -> C:
    """`config` with flags applied by tyro, which also writes the help."""
    import tyro  # half a second to import, and needed only where there are flags

    kind, choices = type(config), CHOICES[type(config)]
    chosen = {}
    for place, choice in choices.items():
        section, flag = getattr(config, place), f"--{place}.{choice.name}"
        own = getattr(section, choice.name)
        name = next((overrides[i + 1] for i, word in enumerate(overrides[:-1]) if word == flag), own)
        options = choice.options_type(name, place, "command line")
        chosen[place] = options(**(section.options if name == own else {}))
    # A subclass, because tyro takes the meaning of each key from the docstrings in the source of its class.
    entries: list[Any] = [(place, type(options), field(default=options)) for place, options in chosen.items()]
    flags = dataclasses.make_dataclass("RunFlags", entries, bases=(kind,), frozen=True, kw_only=True)
    values = {entry.name: getattr(config, entry.name) for entry in fields(kind)} | chosen
    defaults = flags(**values)
    _known_flags(overrides, defaults, kind.PROGRAM)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(flags, args=overrides, default=defaults, prog=kind.PROGRAM, description=kind.__doc__)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise ConfigError(f"command line: {_one_line(errors.getvalue())}") from None
    except ValueError as error:
        raise ConfigError(f"command line: {error}") from None
    values = {entry.name: getattr(parsed, entry.name) for entry in fields(kind)}
    values |= {place: choice.chosen(values[place]) for place, choice in choices.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"command line: {error}") from None


def _known_flags(overrides: Sequence[str], defaults: object, program: str) -> None:
    """Refuses a flag that no key of `defaults` has; tyro would offer every key that is a little like it."""
    known = ["--help", *_flag_names(defaults)]
    for word in overrides:
        if word.startswith("--") and word.replace("_", "-") not in known:
            close = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"`{program} --help` lists them all"
            parent = word.rpartition(".")[0]
            if isinstance(_value_at(defaults, parent), dict):
                hint = f"flags change the entries of {parent[2:]} that the configuration file has; add this one there"
            raise ConfigError(f"command line: unknown option {word}; {hint}")


def _value_at(value: Any, flag: str) -> Any:  # noqa: ANN401 - any configuration value
    """What `--section.key` names in a dataclass, None if nothing."""
    for name in flag.removeprefix("--").replace("-", "_").split("."):
        value = getattr(value, name, None)
    return value


def _flag_names(value: Any, prefix: str = "--") -> Iterator[str]:  # noqa: ANN401 - any configuration value
    """The flags that tyro makes of a dataclass."""
    # One flag for a mapping that might as well be something else: tyro then takes keys and values in turn.
    hints = {} if isinstance(value, dict) else typing.get_type_hints(type(value))
    entries = value.items() if isinstance(value, dict) else [(f.name, getattr(value, f.name)) for f in fields(value)]
    for key, entry in entries:
        name = key.replace("_", "-")
        either = typing.get_origin(hints.get(key)) in (types.UnionType, typing.Union)
        if dataclasses.is_dataclass(entry) or (isinstance(entry, dict) and entry and not either):
            yield from _flag_names(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
            if isinstance(entry, bool):
                yield f"{prefix}no-{name}"


def _one_line(box: str) -> str:
    """What tyro's error box says, without its frame, its title and its pointers to the help."""
    inside = [line for line in box.splitlines() if not line.startswith("╭")]
    text = (
        " ".join(re.sub(r"[╰╯│─]+", " ", " ".join(inside)).split())
        .removeprefix("Error parsing ")
        .removeprefix("RunFlags: ")
    )
    text = re.split(r" (?:Argument helptext:|For full helptext)", text)[0]
    # Of a value that fits none of several types it tells what each of them said.
    several = re.match(r"(--\S+): no type matching (.*) could be instantiated from \[(.*?)\]", text)
    if several:
        return f"invalid value {several[3]} for {several[1]}; expected {several[2]}"
    number = re.match(r"(--\S+): (?:invalid literal for (int)\(\).*|could not convert string to (float)): (.*)", text)
    if number:
        return f"invalid value {number[4]} for {number[1]}; expected {(number[2] or number[3]).upper()}"
    return text
