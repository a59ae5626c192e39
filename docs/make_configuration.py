"""Writes the generated parts of docs/configuration.md: configuration keys, of runs and of priors, problems and metrics.

    python docs/make_configuration.py [--check]

Meanings are the docstrings under the fields of the dataclasses, so that they are written once. What stands between
`<!-- begin NAME -->` and `<!-- end NAME -->` is replaced; the rest of the page is written by hand. With `--check`
nothing is written and the status is 1 where the page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path

import yaml

from envs.registry import problem_factory, problem_names
from evaluation import Evaluation
from evaluation.evaluation import Correction
from system.config import RunConfig
from system.config_file import CHOICES
from system.prior_config import PriorConfig
from system.replay.messages import ShardStats

PAGE = Path(__file__).with_name("configuration.md")


def fields_of(kind: type) -> list[tuple[str, str, str]]:
    """(name, annotation, docstring) of every field of the dataclass `kind`, as written in its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = []
    for entry, after in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            meaning = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meaning = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
            found.append((entry.target.id, ast.unparse(entry.annotation), meaning))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: object) -> str:
    """A default as it stands in YAML."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return "`" + text.removesuffix("\n").removesuffix("\n...") + "`"


def keys(config: RunConfig | PriorConfig, level: str) -> str:
    """Every key of the configuration, a table a section; `level` begins the headings."""
    hints = typing.get_type_hints(type(config))
    scalars, sections = [], []
    for name, kind, meaning in fields_of(type(config)):
        if kind == "ClassVar":
            continue
        value = getattr(config, name)
        if name in CHOICES[type(config)]:
            choice = CHOICES[type(config)][name].name
            rows = [[f"`{name}.{choice}`", "`str`", shown(getattr(value, choice)), fields_of(hints[name])[0][2]]]
            rows.append([f"`{name}.*`", "", "", OPTIONS[name]])
        elif dataclasses.is_dataclass(hints[name]):
            rows = section_rows(name, hints[name], value)
        else:
            scalars.append([f"`{name}`", f"`{kind}`", shown(value), meaning])
            continue
        sections.append(f"{level} {name}\n\n{meaning}\n\n{table(HEAD, rows)}")
    return "\n\n".join([table(HEAD, scalars), *sections])


def section_rows(name: str, kind: type, value: object) -> list[list[str]]:
    """A row for each key of the section `name`, those of sections within it included."""
    hints, rows = typing.get_type_hints(kind), []
    for key, type_, text in fields_of(kind):
        inner = getattr(value, key)
        if dataclasses.is_dataclass(inner):
            rows += section_rows(f"{name}.{key}", hints[key], inner)
        else:
            rows.append([f"`{name}.{key}`", f"`{type_}`", shown(inner), text])
    return rows


OPTIONS = {
    "problem": "The options of that problem: see [Problems](#problems).",
    "data": "The options of that data set: see [Priors](priors.md#data).",
    "network": "The options of that network: see [Priors](priors.md#networks).",
}


def problems() -> str:
    """Every problem and its options."""
    parts = []
    for name in problem_names():
        factory = problem_factory(name)
        hints = typing.get_type_hints(factory)
        rows = [
            [f"`problem.{key}`", f"`{getattr(hints[key], '__name__', hints[key])}`", shown(parameter.default)]
            for key, parameter in inspect.signature(factory).parameters.items()
        ]
        parts.append(f"### {name}\n\n{inspect.getdoc(factory)}\n\n{table(HEAD[:3], rows)}")
    return "\n\n".join(parts)


def metrics(prefix: str, kind: type) -> str:
    """The numeric fields of `kind` as metrics."""
    numeric = ("int", "float", "float | None")
    rows = [[f"`{prefix}/{name}`", text] for name, type_, text in fields_of(kind) if type_ in numeric]
    return table(("key", "meaning"), rows)


HEAD = ("key", "type", "default", "meaning")


def page() -> str:
    """The page with its generated parts renewed."""
    text = PAGE.read_text(encoding="utf-8")
    parts = {
        "keys": keys(RunConfig(), "###"),
        "prior keys": keys(PriorConfig(), "####"),
        "problems": problems(),
        "replay metrics": metrics("replay", ShardStats),
        "evaluation metrics": metrics("eval", Evaluation),
        "correction metrics": metrics("eval/corrected", Correction),
    }
    for name, content in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        replacement = f"{begin}\n\n{content}\n\n{end}"
        text, count = pattern.subn(lambda _, new=replacement: new, text)
        if count != 1:
            raise ValueError(f"expected one part {name!r} in {PAGE}, got {count}")
    return text


def main() -> int:
    """Writes the page, or checks it."""
    parser = argparse.ArgumentParser(description="Renew docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the page is out of date")
    check = parser.parse_args().check
    text = page()
    if text == PAGE.read_text(encoding="utf-8"):
        return 0
    if check:
        sys.stderr.write("docs/configuration.md is out of date; run `python docs/make_configuration.py`\n")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
