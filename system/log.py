"""What a problem says of its data while it is built: rows that are left out, how many and why."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["problems_are_heard"]


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """One line on the standard error of now, as errors are."""
        sys.stderr.write(f"rtb: {record.getMessage()}\n")


@contextmanager
def problems_are_heard() -> Iterator[None]:
    """Within it the log of `envs`, from INFO on, is on standard error; else only warnings would be."""
    logger, lines = logging.getLogger("envs"), _Lines(logging.INFO)
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)
