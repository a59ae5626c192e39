"""The loop of a training, of a posterior or of a prior: it trains, validates, saves, shows, and can be interrupted."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from system.checkpoint import CheckpointStore
from system.errors import CheckpointError, ConfigError
from system.metrics import MetricsWriter
from system.progress import Progress
from system.run_directory import RunDirectory
from system.runner import Trains, only_impossible

__all__ = ["require_same", "save", "terminated_is_interrupted", "train_to_the_end", "way_on"]

_log = logging.getLogger(__name__)

TELLING = 1_000  # trajectories without a likelihood above zero, after which the user is told


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """Takes SIGTERM, which batch systems and containers end a process with, for Ctrl-C: the run is saved first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if earlier is None else earlier)


def way_on(run: RunDirectory, store: CheckpointStore) -> str:
    """What the user is told after an interrupt."""
    steps = store.steps()
    if not steps:
        return f"interrupted before the first checkpoint; delete {run.path} and start again"
    return f"interrupted; `rtb resume {run.path}` goes on from update {steps[-1]}"


def train_to_the_end(
    runner: Trains,
    store: CheckpointStore,
    writer: MetricsWriter,
    progress: Progress,
    *,
    validate: Callable[[], Mapping[str, float]],
    validation_seconds: float,
    checkpoint_seconds: float,
) -> None:
    """Trains until the budget is spent, with `validate` now and then; the last act is a checkpoint."""
    validated = saved = time.perf_counter()
    told = False
    try:
        while not runner.finished:
            fresh = runner.advance()
            now = time.perf_counter()
            if now - validated >= validation_seconds or runner.finished:
                fresh |= validate()
                validated = time.perf_counter()
            if now - saved >= checkpoint_seconds and not runner.finished:
                save(runner, store, progress, last=False)
                saved = time.perf_counter()
            fresh["system/seconds"] = runner.seconds
            writer.write(runner.updates, fresh)
            progress.update(fresh)
            nothing = None if told else only_impossible(fresh, TELLING)
            if nothing is not None:
                told = True
                progress.warn(nothing)
    except KeyboardInterrupt:
        save(runner, store, progress, last=False)
        raise
    save(runner, store, progress, last=True)


def save(runner: Trains, store: CheckpointStore, progress: Progress, *, last: bool) -> None:
    """A checkpoint; one that cannot be written (disk full) is a warning, as the run and the old one are intact."""
    try:
        directory = store.begin(runner.updates)
        names = runner.save(directory)
        store.commit(directory, names)
    except CheckpointError as error:
        progress.warn(str(error))
        _log.warning("%s", error)
        if last:
            raise


def require_same(
    ours: Mapping[str, object], theirs: Mapping[str, object], command: str, may_differ: Collection[str] = ()
) -> None:
    """Refuses a checkpoint of another configuration (`theirs`) than the run's (`ours`), but for some keys."""
    ours, theirs = _flat(ours), _flat(theirs)
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in may_differ and ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"the run's config.yaml has {key} = {ours.get(key)!r}, but its checkpoint was made with "
                f"{theirs.get(key)!r}; put it back, or start a new run with `{command}`"
            )


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
