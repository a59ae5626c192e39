"""What takes too long is interrupted and named; what does not is left alone, other alarms included."""

import dataclasses
import signal
import subprocess
import threading
import time

import pytest
import torch

from envs.time_limit import LikelihoodTimeout, time_limit


@pytest.fixture(autouse=True)
def no_other_alarm():
    """Puts the alarm of the test runner, which ends a test that hangs, aside."""
    handler, (left, interval) = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, left, interval)


def _spin():
    while True:
        pass


@pytest.mark.parametrize(
    "hang",
    [lambda: time.sleep(60), _spin, lambda: subprocess.run(["sleep", "60"], check=True)],
    ids=["sleep", "loop", "process"],
)
def test_what_hangs_in_python_is_interrupted(hang):
    with (
        pytest.raises(LikelihoodTimeout, match=r"my code has not returned within 0\.05 s"),
        time_limit(0.05, "my code"),
    ):
        hang()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_code_that_catches_what_it_is_interrupted_by_is_interrupted_again():
    def stubborn():
        for _ in range(3):
            try:
                time.sleep(60)
            except Exception:
                continue

    with time_limit(0.05, "stubborn code"):
        stubborn()  # returns after three alarms, not after three minutes


def test_without_a_limit_or_in_time_nothing_is_touched():
    handler = signal.getsignal(signal.SIGALRM)
    for seconds in (None, 30.0):
        with time_limit(seconds, "quick code"):
            assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (seconds is not None)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_that_was_set_before_goes_on_afterwards():
    rung = []
    signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 500.0)
    with time_limit(30.0, "quick code"):
        pass
    assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with time_limit(30.0, "code that is slower than the other alarm"):
        time.sleep(0.05)
    time.sleep(0.05)
    assert rung == [signal.SIGALRM]


def test_in_another_thread_there_is_no_limit_and_no_error():
    done = []

    def work():
        with time_limit(0.01, "code in a thread"):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


class Sleepy:
    """Takes its time over every x whose first number is positive."""

    def __init__(self, likelihood):
        self.likelihood, self.measurement_shape = likelihood, likelihood.measurement_shape

    def log_prob(self, value, measurement):
        if bool((value[:, 0] > 0).any()):
            time.sleep(60)
        return self.likelihood.log_prob(value, measurement)

    def gradient(self, value, measurement):
        if bool((value[:, 0] > 0).any()):
            time.sleep(60)
        return self.likelihood.gradient(value, measurement)

    def sample(self, value, generator=None):
        if bool((value[:, 0] > 0).any()):
            time.sleep(60)
        return self.likelihood.sample(value, generator)


def test_a_problem_names_its_likelihood_and_how_many_it_was_asked_for(gaussian_problem):
    likelihood = Sleepy(gaussian_problem.likelihood)
    problem = dataclasses.replace(gaussian_problem, likelihood=likelihood, time_limit=0.05)
    rows, value = torch.zeros(3, dtype=torch.long), torch.ones(3, 4)
    asked = r"the likelihood of problem 'gaussian-linear' \(Sleepy\), asked for 3 x, has not returned within 0.05 s"
    with pytest.raises(LikelihoodTimeout, match=f"^{asked}"):
        problem.log_likelihood(value, rows)
    with pytest.raises(LikelihoodTimeout, match=f"^the gradient of {asked}"):
        problem.gradient(value, problem.measurements[rows])
    with pytest.raises(LikelihoodTimeout, match=f"^a simulation of {asked}"):
        problem.simulate(value)
    expected = gaussian_problem.log_likelihood(-value, rows)
    assert problem.log_likelihood(-value, rows).tolist() == expected.tolist()
    measurement = problem.measurements[rows]
    assert (problem.gradient(-value, measurement) == likelihood.gradient(-value, measurement)).all()
