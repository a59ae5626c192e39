"""Where public data lies: under the folder that $RTB_DATA names; what is missing is named."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MissingDataError", "data_file"]


class MissingDataError(ValueError):
    """Data that a problem needs is not on this machine."""


def data_file(*parts: str, source: str) -> Path:
    """The file `parts` under $RTB_DATA; `source` says where the public gets it.

    Raises:
        MissingDataError: there is no such file, or $RTB_DATA is not set.
    """
    name = "/".join(parts)
    folder = os.environ.get("RTB_DATA")
    if not folder:
        raise MissingDataError(f"needs {name}: set RTB_DATA to the folder that has it; it comes from {source}")
    path = Path(folder, *parts)
    if not path.is_file():
        raise MissingDataError(f"needs {name}, which is not in RTB_DATA = {folder}; put it there from {source}")
    return path
