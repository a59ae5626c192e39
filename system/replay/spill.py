"""Arrays in files: for a byte budget above the machine's memory, on a disk that is fast at random reads.

The file has no name any more once it is mapped, so it goes with the process however that ends. All its blocks are
reserved first: a disk that is too full says so at once, and not by a signal at a later write.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.errors import ConfigError

__all__ = ["mapped_array"]


def mapped_array(directory: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in a file of its own in `directory`, which is made where it is not there.

    Raises:
        ConfigError: the directory cannot be written to, or the disk has no room for the array.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype=dtype, mode="r+", shape=shape))
    except OSError as error:
        raise ConfigError(
            f"replay.spill_directory: no room for {size:,} bytes of trajectories in {directory}: {error.strerror}; "
            "lower replay.capacity_bytes, name another directory, or null to keep them in memory"
        ) from error
