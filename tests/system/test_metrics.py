import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from system import metrics
from system.errors import UserError
from system.metrics import MetricsWriter, read_metrics
from system.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", "any")


def wait_for_the_next_second():
    """TensorBoard reads files in the order of their names, which hold whole seconds; no real resume is that quick."""
    time.sleep(1.01 - time.time() % 1)


def events_of(run, key):
    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(key)]


def test_what_is_written_is_read_back_with_steps_and_seconds(run):
    with MetricsWriter(run) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"learner/loss": 1 / step, "replay/size": step * 100})
        writer.write(30, {"eval/elbo": torch.tensor(-3.5), "system/cpu": np.float32(0.5)})
    series = read_metrics(run.metrics)
    steps, seconds, values = series["learner/loss"]
    assert steps.tolist() == [10, 20, 30]
    assert values.tolist() == [1 / 10, 1 / 20, 1 / 30]
    assert (np.diff(seconds) >= 0).all() and 0 <= seconds[-1] < 60
    assert series["eval/elbo"][2].tolist() == [-3.5]
    assert json.loads(run.metrics.read_text().splitlines()[0])["replay/size"] == 1000
    assert events_of(run, "replay/size") == [(10, 1000.0), (20, 2000.0), (30, 3000.0)]


def test_numbers_that_are_not_finite_are_null_and_counted_across_a_resume(run):
    with MetricsWriter(run) as writer:
        writer.write(1, {"learner/loss": math.nan, "learner/norm": math.inf, "replay/size": 3})
        writer.write(2, {"learner/loss": 1.0})
    with MetricsWriter(run, resumed_at=2) as writer:
        writer.write(3, {"learner/loss": -math.inf})
    lines = [json.loads(line, parse_constant=pytest.fail) for line in run.metrics.read_text().splitlines()]
    assert lines[0]["learner/loss"] is None and lines[0]["learner/norm"] is None and lines[0]["replay/size"] == 3
    series = read_metrics(run.metrics)
    assert series["system/non_finite_values"][2].tolist() == [2, 3]
    np.testing.assert_array_equal(series["learner/loss"][2], [math.nan, 1.0, math.nan])


def test_after_a_resume_the_abandoned_future_is_gone_and_time_goes_on(run):
    with MetricsWriter(run) as writer:
        for step in range(1, 11):
            writer.write(step, {"learner/loss": float(step)})
        writer.write(9, {"eval/elbo": -9.0})
    before = read_metrics(run.metrics)["learner/loss"][1][-1]
    wait_for_the_next_second()
    with MetricsWriter(run, resumed_at=6) as writer:
        for step in (7, 8):
            writer.write(step, {"learner/loss": 100.0 + step})
    steps, seconds, values = read_metrics(run.metrics)["learner/loss"]
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 107, 108]
    assert seconds[-1] >= before
    assert "eval/elbo" not in read_metrics(run.metrics)
    assert events_of(run, "learner/loss") == list(zip(steps.tolist(), values.tolist(), strict=True))


def test_the_clock_of_a_resumed_run_does_not_count_the_pause(run):
    with MetricsWriter(run) as writer:
        writer.write(1, {"learner/loss": 1.0})
    line = json.loads(run.metrics.read_text()) | {"seconds": 500.0}
    run.metrics.write_text(json.dumps(line) + "\n")
    with MetricsWriter(run, resumed_at=1) as writer:
        assert 500.0 <= writer.seconds < 510.0


@pytest.mark.parametrize("tail", [b'{"step": 3, "sec', b'{"step": 3, "seconds": 1.0}', b"\0\0\0\0", b'{"step": 3}\n'])
def test_a_last_line_torn_by_a_crash_is_dropped(run, tail):
    with MetricsWriter(run) as writer:
        writer.write(1, {"learner/loss": 1.0})
        writer.write(2, {"learner/loss": 2.0})
    with run.metrics.open("ab") as file:
        file.write(tail)
    assert read_metrics(run.metrics)["learner/loss"][0].tolist() == [1, 2]
    with MetricsWriter(run, resumed_at=2) as writer:
        writer.write(3, {"learner/loss": 3.0})
    assert read_metrics(run.metrics)["learner/loss"][0].tolist() == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named_not_skipped(run):
    run.metrics.write_text('{"step": 1, "seconds": 0.1}\nnonsense\n{"step": 2, "seconds": 0.2}\n')
    with pytest.raises(UserError, match="line 2 of"):
        read_metrics(run.metrics)
    with pytest.raises(UserError, match="there is no"):
        read_metrics(run.path / "none.jsonl")


@pytest.mark.parametrize("key", ["loss", "learner", "learner/", "trainer/loss", "learner/the loss", "/loss"])
def test_a_key_without_its_namespace_is_refused(run, key):
    with MetricsWriter(run) as writer, pytest.raises(ValueError, match="key must be learner/"):
        writer.write(1, {key: 1.0})


def test_lines_reach_the_disk_by_time_not_by_step(run, monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    with MetricsWriter(run) as writer:
        for step in range(20):
            writer.write(step, {"learner/loss": 1.0})
        assert run.metrics.read_text() == ""
        now += 2.0
        writer.write(20, {"learner/loss": 1.0})
        assert len(run.metrics.read_text().splitlines()) == 21


def test_a_killed_run_keeps_what_was_flushed_and_goes_on(run):
    program = """
import sys, time
from pathlib import Path
from system.metrics import MetricsWriter
from system.run_directory import RunDirectory
writer = MetricsWriter(RunDirectory(path=Path(sys.argv[1])))
for step in range(5):
    writer.write(step, {"learner/loss": 1.0})
writer.flush()
print("ready", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    child.stdout.close()
    wait_for_the_next_second()
    with MetricsWriter(run, resumed_at=4) as writer:
        writer.write(5, {"learner/loss": 2.0})
    assert read_metrics(run.metrics)["learner/loss"][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in events_of(run, "learner/loss")] == [0, 1, 2, 3, 4, 5]


def test_a_full_disk_is_a_one_line_error_and_the_file_is_closed(run):
    writer = MetricsWriter(run)
    writer._file.close()
    writer._file = open("/dev/full", "w")  # noqa: SIM115
    writer._append({"step": 1, "seconds": 0.0})
    with pytest.raises(UserError, match="No space left on device; mend that and resume"):
        writer.flush()
    with pytest.raises((UserError, OSError)):
        writer.close()
    assert writer._file.closed


def test_opening_and_closing_leaves_no_events(run):
    MetricsWriter(run).close()
    assert list(run.tensorboard.iterdir()) == []
