"""Numbers of a run over time: TensorBoard events, and `metrics.jsonl` for everything else.

One line of `metrics.jsonl` is `{"step": 120, "seconds": 8.4, "learner/loss": 0.31, ...}`. Keys say who measured:
learner/, replay/, actor/, eval/ or system/. A number that is not finite is written as null, so that each line is
strict JSON, and `system/non_finite_values` counts them since the run began.

A resumed run appends. It starts with a line `{"step": 100, "seconds": 9.0, "resumed": true}`: what was written after
step 100 belongs to a future that did not happen, and `read_metrics` leaves it out.

TensorBoard's own writer is used rather than torch's: it takes one event for all numbers of a step, flushes by time
in its own thread, and imports in 0.3 s without torch.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from system.errors import UserError
from system.run_directory import RunDirectory

FLUSH_SECONDS = 2.0
NON_FINITE = "system/non_finite_values"
_KEY = re.compile(r"(learner|replay|actor|eval|system)/[A-Za-z0-9_./-]+")


class MetricsWriter:
    """Writes the numbers of one run; made by the driver, which is the only writer."""

    def __init__(self, run: RunDirectory, resumed_at: int | None = None) -> None:
        """Open the files of a run, and drop a line that a crash left torn.

        Args:
            run: Where.
            resumed_at: Step of the checkpoint that the run continues from; None for a new run.
        """
        self._path = run.metrics
        self._tensorboard_path = run.tensorboard
        self._events: Any = None  # opened at the first write: examining a run must not leave an empty event file
        seconds, self._non_finite = _repair(self._path)
        self._start = time.monotonic() - seconds
        self._resumed_at = resumed_at
        self._file = self._path.open("a", encoding="utf-8")
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        if resumed_at is not None:
            self._append({"step": resumed_at, "seconds": self.seconds, "resumed": True})

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, those before a resume included, the pause between not."""
        return round(time.monotonic() - self._start, 3)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Note the values of a step. The same step may come several times with other keys."""
        numbers: dict[str, float | None] = {}
        for key, value in values.items():
            if not _KEY.fullmatch(key):
                raise ValueError(f"key must be learner/, replay/, actor/, eval/ or system/ and a name, got {key!r}")
            number = _number(key, value)
            numbers[key] = number if math.isfinite(number) else None
        lost = sum(number is None for number in numbers.values())
        if lost:
            self._non_finite += lost
            numbers[NON_FINITE] = self._non_finite
        self._append({"step": step, "seconds": self.seconds, **numbers})
        self._add_event(step, {key: number for key, number in numbers.items() if number is not None})

    def flush(self) -> None:
        """Bring everything to disk now; `write` does so by itself every two seconds."""
        try:
            self._file.flush()
            if self._events is not None:
                self._events.flush()
        except OSError as error:
            raise self._failure(error) from error
        self._next_flush = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        """Flush and close; may be called twice."""
        if self._file.closed:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            if self._events is not None:
                self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"cannot write metrics to {self._path}: {error.strerror}; mend that and resume the run")

    def _append(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise self._failure(error) from error
        if time.monotonic() >= self._next_flush:
            self.flush()

    def _add_event(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._events is None:
            self._events = EventFileWriter(str(self._tensorboard_path), flush_secs=FLUSH_SECONDS)
            if self._resumed_at is not None:  # tells TensorBoard to drop the abandoned future, see above
                start = SessionLog(status=SessionLog.START)
                self._events.add_event(Event(wall_time=time.time(), step=self._resumed_at + 1, session_log=start))
        values = [Summary.Value(tag=key, simple_value=number) for key, number in numbers.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every series of a `metrics.jsonl`, also while it is being written.

    Returns:
        key -> (steps [N] int64, seconds [N] float64, values [N] float64); a null is nan.
    """
    series: dict[str, list[tuple[int, float, float]]] = {}
    lines, _ = _complete_lines(path)
    for line in lines:
        step, seconds = line.pop("step"), line.pop("seconds")
        if line.pop("resumed", False):
            for key, points in series.items():
                series[key] = [point for point in points if point[0] <= step]
            continue
        for key, value in line.items():
            series.setdefault(key, []).append((step, seconds, math.nan if value is None else value))
    return {
        key: (
            np.array([point[0] for point in points], np.int64),
            np.array([point[1] for point in points], np.float64),
            np.array([point[2] for point in points], np.float64),
        )
        for key, points in series.items()
        if points
    }


def _number(key: str, value: float) -> float:
    # Counts stay whole numbers in the file; numpy scalars and 0-d tensors become plain ones.
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, int | float):
        raise ValueError(f"value of {key} must be one number, got {type(value).__name__}")
    return int(number) if isinstance(number, bool) else number


def _complete_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that are whole, and the number of bytes they take."""
    lines: list[dict[str, Any]] = []
    size = 0
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"expected the metrics of a run, but there is no {path}") from None
    for number, text in enumerate(raw.splitlines(keepends=True), start=1):
        try:
            line = json.loads(text)
            torn = not text.endswith(b"\n") or not isinstance(line, dict) or not {"step", "seconds"} <= line.keys()
        except ValueError:
            torn = True
        if torn:
            if size + len(text) < len(raw):  # a crash tears the last line only; anything else is not ours to mend
                raise UserError(f"line {number} of {path} is not a line of metrics; remove it and try again")
            break
        lines.append(line)
        size += len(text)
    return lines, size


def _repair(path: Path) -> tuple[float, int]:
    """Cut a torn last line off; seconds and non-finite values so far."""
    if not path.exists():
        return 0.0, 0
    lines, size = _complete_lines(path)
    with path.open("rb+") as file:
        file.truncate(size)
    counts = [line[NON_FINITE] for line in lines if NON_FINITE in line]
    return (lines[-1]["seconds"] if lines else 0.0), (counts[-1] if counts else 0)
