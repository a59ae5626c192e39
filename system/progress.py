"""What a run is doing, for the person who waits for it.

A live table on a terminal; elsewhere (a file, a pipe, a batch job) one plain line every ten seconds, made to be read
and to be searched. The same mapping of newest metrics feeds both; a row appears once its number is known.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

LINE_SECONDS = 10.0
REFRESHES_PER_SECOND = 2.0  # a table takes 2 ms to draw; more often would cost the run and not help the eye


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number that is shown."""

    label: str
    """Name in the table, and with `_` for spaces in a plain line."""
    key: str
    """Metric that it comes from."""
    form: str
    """Format specification."""


CALLS = "system/likelihood_calls"
ROWS = (
    Row(label="updates", key="learner/updates", form=",.0f"),
    Row(label="trajectories", key="actor/trajectories", form=",.0f"),
    Row(label="likelihood calls", key=CALLS, form=",.0f"),
    Row(label="loss", key="learner/loss", form=".4g"),
    Row(label="validation loss", key="eval/validation_loss", form=".4g"),
    Row(label="ELBO", key="eval/elbo", form=".3f"),
    Row(label="IW bound", key="eval/iw_log_partition", form=".3f"),
    Row(label="exact log Z", key="eval/exact_log_partition", form=".3f"),
    Row(label="ESS", key="eval/effective_sample_size", form=".3g"),
    Row(label="replay size", key="replay/size", form=",.0f"),
    Row(label="samples per insert", key="replay/samples_per_insert", form=".2f"),
    Row(label="population", key="exact/population", form=".0f"),
    Row(label="beta", key="exact/beta", form=".3g"),
    Row(label="sweeps", key="exact/sweeps", form=",.0f"),
    Row(label="largest R^", key="exact/r_hat", form=".3f"),
    Row(label="independent samples", key="exact/effective_samples", form=",.0f"),
    Row(label="actor restarts", key="actor/restarts", form=",.0f"),
)


class Progress:
    """Shows a run, as a context manager around its loop; `update` is cheap enough to call every step."""

    def __init__(
        self,
        title: str,
        *,
        budget_seconds: float | None = None,
        budget_updates: int | None = None,
        budget_calls: int | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        """Say what is run.

        Args:
            title: Heading, the name of the run.
            budget_seconds: Seconds after which the run ends, if so.
            budget_updates: Updates after which the run ends, if so.
            budget_calls: Calls of the likelihood after which the run ends, if so.
            quiet: Show nothing, whatever happens.
            stream: Where to; standard output by default.
            line_seconds: Seconds between plain lines.
        """
        self._title = title
        self._budget_seconds = budget_seconds
        self._budgets = {"learner/updates": budget_updates, CALLS: budget_calls}
        self._quiet = quiet
        self._stream = stream if stream is not None else sys.stdout
        self.console = Console(file=self._stream, quiet=quiet)
        """For whatever else must appear while the table lives, e.g. a logging handler."""
        self._live: Live | None = None
        self._line_seconds = line_seconds
        self._next_line = 0.0
        self._seconds_before = 0.0
        self._start = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._warnings: list[str] = []
        self._is_newer = False  # than the last plain line

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if not self._quiet and self.console.is_terminal:
            self._live = Live(
                get_renderable=self.table,
                console=self.console,
                refresh_per_second=REFRESHES_PER_SECOND,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._is_newer:
            self._write_line()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Take newer numbers; those not mentioned stay. `system/seconds` replaces the clock of this object."""
        self._metrics.update(metrics)
        self._is_newer = True
        if "system/seconds" in metrics:  # a resumed run has a past
            self._seconds_before = metrics["system/seconds"]
            self._start = time.monotonic()
        if self._live is None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._line_seconds
            self._write_line()

    def warn(self, line: str) -> None:
        """Add a warning: at once in a pipe, as the last row of the table on a terminal."""
        self._warnings.append(line)
        if self._live is None and not self._quiet:
            self._stream.write(f"warning: {line}\n")
            self._stream.flush()

    def table(self) -> Table:
        """The table as it is now."""
        table = Table(title=self._title, title_justify="left", show_header=False, min_width=44)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(justify="right")
        table.add_row("elapsed", self._elapsed())
        for label, text in self._numbers():
            table.add_row(label, text)
        if self._warnings:
            table.add_row(f"warnings ({len(self._warnings)})", self._warnings[-1], style="yellow")
        return table

    def line(self) -> str:
        """The same numbers in one line."""
        words = [f"elapsed={self._elapsed().replace(' ', '')}"]
        words += [f"{label.replace(' ', '_')}={text.replace(' ', '')}" for label, text in self._numbers()]
        if self._warnings:
            words.append(f"warnings={len(self._warnings)}")
        return " ".join(words)

    def _write_line(self) -> None:
        if self._quiet:
            return
        self._is_newer = False
        self._stream.write(f"{self.line()}\n")
        self._stream.flush()

    def _elapsed(self) -> str:
        text = _clock(self._seconds_before + time.monotonic() - self._start)
        return text if self._budget_seconds is None else f"{text} / {_clock(self._budget_seconds)}"

    def _numbers(self) -> list[tuple[str, str]]:
        numbers = []
        for row in ROWS:
            if row.key in self._metrics:
                text = format(self._metrics[row.key], row.form)
                budget = self._budgets.get(row.key)
                if row.key == CALLS and budget is None:  # millions, which nobody has asked about
                    continue
                if budget is not None:
                    text = f"{text} / {budget:,}"
                numbers.append((row.label, text))
        return numbers


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
