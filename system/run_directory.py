"""Where everything of one run lies.

config.yaml      the resolved configuration; its presence makes a directory a run
metrics.jsonl    one JSON object a line
tensorboard/     the same numbers as TensorBoard events
checkpoints/     step-000000123/ ...
measurement.npy  the measurement trained at, where a file gave it
init.safetensors the weights training started from, where they are another run's
samples.npz      posterior samples
report.html      the report, with its figures inside
results.json     the numbers of the last evaluation
figures/         the figures as files
"""

import difflib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from system.errors import UserError

RUNS = Path("runs")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDirectory:
    """Paths of one run. Get it from `create` or `open`, which check what is there."""

    path: Path
    """The directory itself."""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def measurement(self) -> Path:
        """Copy of the measurement that a file gave."""
        return self.path / "measurement.npy"

    @property
    def init(self) -> Path:
        """Copy of the weights that training started from."""
        return self.path / "init.safetensors"

    @property
    def samples(self) -> Path:
        """Posterior samples."""
        return self.path / "samples.npz"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def results(self) -> Path:
        """The numbers of the last evaluation."""
        return self.path / "results.json"

    @property
    def figures(self) -> Path:
        """Directory of the report's figures."""
        return self.path / "figures"

    @classmethod
    def create(cls, path: Path | None, name: str) -> "RunDirectory":
        """Make the directory of a new run.

        Args:
            path: Where; it may exist, but must not hold a run. None takes the next free `runs/<name>-<n>`.
            name: What the run is called, used when `path` is None.
        """
        try:
            made = _next_free(name) if path is None else _take(path)
            run = cls(path=made)
            for directory in (run.tensorboard, run.checkpoints, run.figures):
                directory.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make a run directory at {path or RUNS}: {error.strerror}; choose another place"
            ) from error
        return run

    def discard_unless_begun(self) -> None:
        """Deletes the directory if only its configuration and empty files are in it: a run refused as it began."""
        own = (self.config, self.measurement, self.init)
        files = [entry for entry in self.path.rglob("*") if entry.is_file() and entry not in own]
        if not any(entry.stat().st_size for entry in files):
            shutil.rmtree(self.path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Find an existing run."""
        if (path / "config.yaml").is_file():
            return cls(path=path)
        what = "has no config.yaml" if path.is_dir() else "is not a directory" if path.exists() else "does not exist"
        candidates = _candidates(path)
        advice = f"did you mean {', '.join(map(str, candidates))}?" if candidates else "start one with `rtb train`"
        raise UserError(f"expected the directory of a run, but {path} {what}; {advice}")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: whoever reads it sees the old text or the new, never half."""
    tmp = path.with_name(f"{path.name}.tmp")
    try:
        with tmp.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def _holds_run(path: Path) -> bool:
    if (path / "config.yaml").exists() or (path / "metrics.jsonl").exists():
        return True
    return any((path / "checkpoints").glob("step-*"))


def _take(path: Path) -> Path:
    if path.is_dir() and _holds_run(path):
        raise UserError(
            f"expected a new directory, but {path} holds a run; continue it with `rtb resume {path}`, "
            "delete it, or choose another directory"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def _next_free(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(f"name of a run must be letters, digits, '.', '-' and '_', got {name!r}")
    RUNS.mkdir(exist_ok=True)
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    taken = [int(match[1]) for entry in RUNS.iterdir() if (match := pattern.fullmatch(entry.name))]
    number = max(taken, default=0) + 1
    while True:  # two runs may start in the same moment: mkdir decides who has the number
        path = RUNS / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _candidates(path: Path, limit: int = 3) -> list[Path]:
    """Runs near a wrong path: those inside it, newest first, else the most similar beside it and in `runs/`."""
    inside = _runs_in(path)
    if inside:
        return inside[:limit]
    near = {str(run): run for place in dict.fromkeys((path.parent, RUNS)) for run in _runs_in(place)}
    by_name = {Path(text).name: text for text in near}
    names = difflib.get_close_matches(path.name, by_name, n=limit)
    return [near[by_name[name]] for name in names] or list(near.values())[:limit]


def _runs_in(place: Path) -> list[Path]:
    try:
        runs = [entry for entry in place.iterdir() if (entry / "config.yaml").is_file()]
        return sorted(runs, key=lambda run: (run / "config.yaml").stat().st_mtime, reverse=True)
    except OSError:  # only a suggestion: a place that cannot be read has none
        return []
