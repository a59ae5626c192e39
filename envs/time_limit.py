"""A time limit for code that is not ours: a likelihood that hangs ends with a message, and not the day after.

By an alarm of the operating system (`signal.setitimer`), which costs microseconds a call. It interrupts Python code,
sleeps and waits for other processes. It cannot interrupt a call into C that does not return to Python, and works in the
main thread only, on Linux and macOS; elsewhere there is no limit. The Ray runner replaces whole processes instead.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LikelihoodTimeout", "time_limit"]


class LikelihoodTimeout(TimeoutError):
    """A likelihood did not return in time."""


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raises where `what` takes longer than `seconds` (None: no limit); an alarm set before goes on afterwards.

    Raises:
        LikelihoodTimeout: naming `what` and the limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: object) -> None:
        raise LikelihoodTimeout(f"{what} has not returned within {seconds:g} s (actor.likelihood_timeout_seconds)")

    handler, began = signal.signal(signal.SIGALRM, expire), time.monotonic()
    # Again and again, as the code may catch what it is interrupted by.
    earlier, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if earlier > 0:
            left = earlier - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3), interval)
