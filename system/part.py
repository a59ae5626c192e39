"""One part of a checkpoint: arrays and plain values, written and read without pickle.

Arrays go to `<name>.safetensors`, everything else to `<name>.json`. What comes back is what went in, bit for bit:

- arrays keep dtype and shape (0-d and empty ones too); bool, (u)int 8 to 64 and float 16 to 64 are allowed;
- integers keep every digit (the state of a numpy PCG64 generator has 128 bits);
- finite floats keep every bit; nan and the infinities, which JSON does not know, become `{"__float__": "nan"}`.
  Refusing them instead would stop a run at its first save because a best loss starts at infinity. Whether the
  *weights* are finite is for the learner to check before it saves;
- tuples come back as lists, the one thing that changes. Keys of mappings must be text.
"""

import json
import math
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from system.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KINDS = "biuf"  # numpy's letters for bool, int, unsigned, float
_FLOAT = "__float__"
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """State of one object of a run."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays by name; torch tensors are converted by the caller."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """None, bool, int, float, text, and lists and mappings of those."""

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS or array.dtype.itemsize > 8:
                came = f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
                raise TypeError(f"array {name!r} must be a numpy array of bool, int or float up to 64 bits, got {came}")


def write_part(directory: Path, name: str, part: Part) -> None:
    """Write a part and sync it to disk. Any process may do so between `begin` and `commit`.

    Each file appears under its final name only when it is complete, so that `commit` can tell.
    """
    if not _NAME.fullmatch(name) or name == "manifest":
        raise ValueError(f"name of a part must be letters, digits, - and _, and not 'manifest', got {name!r}")
    text = json.dumps(_encode(part.scalars, f"{name}.scalars"), allow_nan=False, indent=1)
    # safetensors copies the memory of an array and ignores its strides and byte order: a transposed view would come
    # back scrambled, without a word. np.asarray(order="C") keeps 0-d arrays 0-d; np.ascontiguousarray does not.
    arrays = {
        key: np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C") for key, array in part.arrays.items()
    }
    needed = len(text.encode()) + sum(array.nbytes for array in arrays.values())
    try:
        for suffix, write in (
            (".safetensors", lambda path: save_file(arrays, path)),
            (".json", lambda path: path.write_text(text, encoding="utf-8")),
        ):
            partial = directory / f"{name}{suffix}.partial"
            write(partial)
            # safetensors makes its files readable by their owner only; a shared run directory says who may read.
            partial.chmod(directory.stat().st_mode & 0o666)
            _sync_file(partial)
            partial.rename(directory / f"{name}{suffix}")
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(
            f"checkpoint part {name} not written to {directory}: {' '.join(reason.split())}; "
            f"it needs {needed:,} bytes and {free_bytes(directory):,} are free; earlier checkpoints are intact"
        ) from error


def read_part(directory: Path, name: str) -> Part:
    """Read a part. Checksums are not verified here: `CheckpointStore.load` does so."""
    try:
        arrays = load_file(directory / f"{name}.safetensors")
        scalars = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"), object_hook=_decode)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"part {name} of {directory} cannot be read: {' '.join(str(error).split())}") from error
    return Part(arrays=arrays, scalars=scalars)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a rename alone may be lost with the power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def free_bytes(directory: Path) -> int:
    """Room on the disk of a directory, for messages."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:  # the directory itself is gone; the message has the first reason already
        return 0


def _encode(value: object, path: str) -> object:
    """A copy of `value` that strict JSON can hold; `path` tells where an impossible value sits."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == _FLOAT:
                raise TypeError(f"{path}: keys must be text other than {_FLOAT!r}, got {key!r}")
        return {key: _encode(item, f"{path}.{key}") for key, item in value.items()}
    raise TypeError(f"{path} must be None, bool, int, float, text, list or dict, got {type(value).__name__}")


def _decode(mapping: dict[str, Any]) -> Any:  # noqa: ANN401  JSON is what it is
    return _NON_FINITE[mapping[_FLOAT]] if _FLOAT in mapping else mapping
