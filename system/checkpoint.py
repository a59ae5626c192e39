"""Checkpoints of a whole run: complete, or not there.

A checkpoint is the directory `step-000000123`. Each of its parts (learner, replay shard, limiter, ...) is two files:
`<part>.safetensors` with the arrays and `<part>.json` with everything else; `manifest.json` lists size and sha256
of each, and the versions that wrote them. Nothing is unpickled, so a checkpoint of a stranger can be read safely.

The order of writing is what makes it atomic: files go to `step-000000123.tmp` and are synced, the manifest comes
last, one rename makes it visible, and only then are older checkpoints removed. Whatever stops the program, the
newest directory without `.tmp` is complete; if the disk damages it later, the checksums say so and `load` takes
the one before.

Two checkpoints are kept by default for that reason. One directory has one writer (`CheckpointStore`); other processes
may add their parts to its temporary directory through `write_part`.
"""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from system.errors import CheckpointError
from system.part import Part, free_bytes, read_part, sync_directory, write_part

__all__ = ["Checkpoint", "CheckpointStore", "Part", "read_part", "write_part"]

FORMAT = 2
MANIFEST = "manifest.json"
_COMPLETE = re.compile(r"step-(\d{9,})")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What `CheckpointStore.load` found."""

    step: int
    """Learner step at which it was saved."""
    path: Path
    """Directory it was read from."""
    parts: dict[str, Part]
    """Every part, or those that were asked for, by name."""
    versions: dict[str, str]
    """Versions of python, torch, numpy and this project that wrote it."""
    warnings: tuple[str, ...]
    """One line for each damaged checkpoint passed over and each library that changed since; already logged."""


class CheckpointStore:
    """The checkpoints of one run.

    save(step, parts) is the same as

        tmp = begin(step)
        write_part(tmp, name, part)      # for each part, in any process
        commit(tmp, expected=names)
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first; whether they are sound is not checked."""
        if not self.directory.is_dir():
            return []
        found = (_COMPLETE.fullmatch(entry.name) for entry in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, parts: Mapping[str, Part]) -> Path:
        """Write a checkpoint and return its directory. On failure older ones are untouched."""
        tmp = self.begin(step)
        try:
            for name, part in parts.items():
                write_part(tmp, name, part)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        return self.commit(tmp, expected=parts)

    def begin(self, step: int) -> Path:
        """Make the temporary directory of a checkpoint. Those a crash has left behind are removed first."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob("step-*.tmp"):
                shutil.rmtree(leftover)
            tmp = self.directory / f"step-{step:09d}.tmp"
            tmp.mkdir()
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoints to {self.directory}: {error.strerror}") from error
        return tmp

    def commit(self, tmp: Path, expected: Collection[str] = ()) -> Path:
        """Seal what lies in the temporary directory, make it the newest checkpoint, and prune.

        Checkpoints of later steps belong to a future that was abandoned by resuming from an earlier step; they
        are pruned too, so that "newest" keeps meaning the state that the run was last in.

        Args:
            tmp: Directory that `begin` gave.
            expected: Parts that must be there. A part of another process that has not arrived is an error.
        """
        final = tmp.with_suffix("")
        try:
            _write_manifest(tmp, expected)
            if final.exists():  # the same step again, after resuming: a rename cannot replace a full directory
                replaced = final.with_name(f"{final.name}.replaced.tmp")
                final.rename(replaced)
                tmp.rename(final)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                tmp.rename(final)
            sync_directory(self.directory)
        except CheckpointError:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(tmp, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {final} not written: {error.strerror}, {free_bytes(self.directory):,} bytes are free; "
                "earlier checkpoints are intact"
            ) from error
        self._prune(newest=_step_of(final))
        return final

    def load(self, step: int | None = None, only: Collection[str] | None = None) -> Checkpoint:
        """Read the newest sound checkpoint, or exactly the one of `step`.

        Args:
            step: Take this one or fail; by default the newest, and if it is damaged the one before.
            only: Names of the parts to read and verify; by default all. Sampling does not need the replay.
        """
        available = self.steps()
        if step is not None and step not in available:
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}; there are {available}")
        if not available:
            raise CheckpointError(f"no checkpoint in {self.directory}; the run stopped before its first one")
        warnings: list[str] = []
        for candidate in reversed(available) if step is None else [step]:
            path = self.directory / f"step-{candidate:09d}"
            try:
                parts, versions = _read(path, only)
            except _DamageError as damage:
                warnings.append(f"checkpoint {path.name} is damaged and was not used: {damage}")
                continue
            warnings += _changed_versions(path, versions)
            for line in warnings:
                _log.warning(line)
            return Checkpoint(step=candidate, path=path, parts=parts, versions=versions, warnings=tuple(warnings))
        if step is None and self.steps() != available:  # a running writer has pruned them under our hands
            return self.load(only=only)
        raise CheckpointError(f"no usable checkpoint in {self.directory}: {'; '.join(warnings)}")

    def _prune(self, newest: int) -> None:
        steps = self.steps()
        abandoned = [step for step in steps if step > newest]
        if abandoned:
            _log.warning("checkpoints %s removed: the run went back and is now at step %d", abandoned, newest)
        current = [step for step in steps if step <= newest]
        for step in abandoned + current[: -self.keep]:
            # Not worth ending a run for: a checkpoint that cannot be removed costs disk space only.
            shutil.rmtree(self.directory / f"step-{step:09d}", ignore_errors=True)


class _DamageError(Exception):
    """A checkpoint directory is not what its writer left; caught by `load`, which goes on to the next."""


def _step_of(path: Path) -> int:
    match = _COMPLETE.fullmatch(path.name)
    if match is None:
        raise ValueError(f"expected a directory named step-<nine digits>.tmp as made by begin, got {path}.tmp")
    return int(match[1])


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "rtb"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _changed_versions(path: Path, saved: dict[str, str]) -> list[str]:
    now = _versions()
    changed = [f"{name} {saved[name]} (now {now[name]})" for name in now if saved.get(name, now[name]) != now[name]]
    if not changed:
        return []
    return [f"checkpoint {path.name} was written with {', '.join(changed)}; last digits may differ"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render_manifest(body: dict[str, Any]) -> str:
    """The one spelling of a manifest, checksum included: comparing text detects any changed byte."""
    text = json.dumps(body, indent=1, sort_keys=True)
    return json.dumps({"body": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True)


def _write_manifest(tmp: Path, expected: Collection[str]) -> None:
    step = _step_of(tmp.with_suffix(""))
    names = sorted(entry.name for entry in tmp.iterdir())
    begun = {Path(name).stem for name in names if name.endswith((".json", ".safetensors"))}
    missing = sorted(
        f"{part}{suffix}"
        for part in begun.union(expected)
        for suffix in (".json", ".safetensors")
        if part + suffix not in names
    )
    unfinished = [name for name in names if name.endswith(".partial")]
    if missing or unfinished:
        raise CheckpointError(
            f"checkpoint of step {step} not written: files missing {missing}, still being written {unfinished}"
        )
    files = {name: {"bytes": (tmp / name).stat().st_size, "sha256": _digest(tmp / name)} for name in names}
    body = {"format": FORMAT, "step": step, "versions": _versions(), "files": files}
    with (tmp / MANIFEST).open("x", encoding="utf-8") as file:
        file.write(_render_manifest(body))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(tmp)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        body: dict[str, Any] = json.loads(text)["body"]
        sound = _render_manifest(body) == text
    except FileNotFoundError:
        raise _DamageError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamageError(f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    if not sound:
        raise _DamageError(f"{MANIFEST} does not match its own checksum")
    if body["format"] != FORMAT:
        raise _DamageError(f"format {body['format']}, this version of rtb reads {FORMAT}")
    if body["step"] != _step_of(path):
        raise _DamageError(f"{MANIFEST} is that of step {body['step']}")
    return body


def _read(path: Path, only: Collection[str] | None) -> tuple[dict[str, Part], dict[str, str]]:
    body = _read_manifest(path)
    names = sorted(Path(name).stem for name in body["files"] if name.endswith(".json"))
    if only is not None:
        absent = sorted(set(only) - set(names))
        if absent:
            raise CheckpointError(f"checkpoint {path} has no part {absent}; it has {names}")
        names = sorted(only)
    wanted = {name + suffix for name in names for suffix in (".json", ".safetensors")}
    for name, saved in body["files"].items():
        if name not in wanted:
            continue
        try:
            size = (path / name).stat().st_size
            if size != saved["bytes"]:
                raise _DamageError(f"{name} has {size} bytes, was written with {saved['bytes']}")
            if _digest(path / name) != saved["sha256"]:
                raise _DamageError(f"{name} does not match its checksum")
        except OSError as error:
            raise _DamageError(f"{name}: {error.strerror}") from error
    try:
        return {name: read_part(path, name) for name in names}, body["versions"]
    except CheckpointError as error:
        raise _DamageError(str(error)) from error
