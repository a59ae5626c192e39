import io
import time

import pytest
from rich.console import Console

from system import progress
from system.progress import Progress

METRICS = {
    "learner/updates": 1200,
    "actor/trajectories": 76800,
    "learner/loss": 0.03142,
    "eval/elbo": -12.5,
    "eval/iw_log_partition": -12.25,
    "eval/exact_log_partition": -12.2,
    "eval/effective_sample_size": 0.42,
    "replay/size": 50000,
    "replay/samples_per_insert": 4.0,
    "actor/restarts": 1,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_pipe_gets_one_plain_line_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress("digits", stream=stream) as shown:
        for step in range(25):
            shown.update({"learner/updates": step})
            clock.now += 1.0
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["updates=0", "updates=10", "updates=20", "updates=24"]
    assert lines[1] == "elapsed=0:00:10 updates=10"
    assert "\x1b" not in stream.getvalue()


def test_the_last_line_is_not_written_twice(clock):
    stream = io.StringIO()
    with Progress("digits", stream=stream) as shown:
        shown.update({"learner/updates": 1})
    assert stream.getvalue().count("updates=1") == 1


def test_a_plain_line_holds_every_number_and_both_budgets(clock):
    shown = Progress("digits", budget_seconds=3600, budget_updates=5000, stream=io.StringIO())
    shown.update(METRICS)
    clock.now += 75
    shown.warn("first")
    assert shown.line() == (
        "elapsed=0:01:15/1:00:00 updates=1,200/5,000 trajectories=76,800 loss=0.03142 ELBO=-12.500 "
        "IW_bound=-12.250 exact_log_Z=-12.200 ESS=0.42 replay_size=50,000 samples_per_insert=4.00 "
        "actor_restarts=1 warnings=1"
    )


def test_likelihood_calls_are_shown_with_their_budget(clock):
    shown = Progress("digits", budget_calls=20_000, stream=io.StringIO())
    shown.update({"system/likelihood_calls": 12_288.0})
    assert shown.line() == "elapsed=0:00:00 likelihood_calls=12,288/20,000"


def test_likelihood_calls_without_a_budget_are_not_in_the_way(clock):
    shown = Progress("digits", stream=io.StringIO())
    shown.update({"system/likelihood_calls": 12_288.0, "learner/updates": 3.0})
    assert shown.line() == "elapsed=0:00:00 updates=3"


def test_the_seconds_of_a_resumed_run_replace_the_clock(clock):
    shown = Progress("digits", stream=io.StringIO())
    shown.update({"system/seconds": 3600.0})
    clock.now += 5
    assert shown.line() == "elapsed=1:00:05"


def test_the_table_holds_the_numbers_that_are_known_and_the_last_warning():
    shown = Progress("digits", budget_updates=5000, stream=io.StringIO())
    shown.update({key: value for key, value in METRICS.items() if key != "eval/exact_log_partition"})
    shown.warn("actor 3 restarted")
    shown.warn("actor 4 restarted")
    out = io.StringIO()
    Console(file=out, width=100).print(shown.table())
    text = out.getvalue()
    for words in ("digits", "1,200 / 5,000", "-12.500", "0.42", "warnings (2)", "actor 4 restarted"):
        assert words in text
    assert "exact log Z" not in text and "actor 3" not in text


def test_a_terminal_gets_a_table_and_no_plain_lines():
    stream = Terminal()
    with Progress("digits", stream=stream) as shown:
        shown.update(METRICS)
        time.sleep(0.01)
    assert "1,200" in stream.getvalue() and "│" in stream.getvalue()
    assert "updates=" not in stream.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_writes_nothing_at_all(kind):
    stream = kind()
    with Progress("digits", quiet=True, stream=stream) as shown:
        shown.update(METRICS)
        shown.warn("something")
        shown.console.print("anything")
    assert stream.getvalue() == ""


def test_an_error_inside_leaves_the_terminal_with_its_cursor():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress("digits", stream=stream) as shown:
        shown.update(METRICS)
        raise KeyboardInterrupt
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_warnings_appear_at_once_in_a_pipe():
    stream = io.StringIO()
    with Progress("digits", stream=stream) as shown:
        shown.warn("actor 3 restarted")
        assert stream.getvalue() == "warning: actor 3 restarted\n"
