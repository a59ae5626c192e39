"""Where the learner's time goes: in its network, waiting for batches, publishing weights.

Network: the share of an update's time in forward and backward passes of the posterior's network, by wrapping both, on
the problems of `learner_step`. Waiting and publishing: what the learner of a run on Ray measures itself, on digits-half
as it is shipped; that needs two idle cores.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.harness import parse
from benchmarks.learner_step import CASES, make_problem, make_trajectory
from diffusion.posterior import FinetunePosterior
from learner import Learner, LearnerConfig
from system.config_file import load_config
from system.metrics import read_metrics
from system.run import train

UPDATES, SECONDS, SHORT_SECONDS = 5, 60, 20


class Stopwatch:
    """Seconds in what it is wrapped around; of what is nested, the outermost."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the block."""
        self._depth += 1
        began = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.perf_counter() - began

    def around(self, function: Any) -> Any:  # noqa: ANN401 - whatever it does
        """`function`, timed."""

        def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            with self.running():
                return function(*given, **named)

        return timed


def network_share(name: str) -> float:
    """Share of an update's time in forward and backward passes of the network."""
    case = CASES[name]
    problem = make_problem(case)
    trajectory = make_trajectory(problem, case)
    torch.manual_seed(0)
    posterior, watch = FinetunePosterior(problem.prior, ()), Stopwatch()
    network: Any = posterior.denoiser.network
    network.forward = watch.around(network.forward)
    learner = Learner(problem, posterior, LearnerConfig())
    learner.update(trajectory, 0.0)
    watch.seconds, began = 0.0, time.perf_counter()
    with patch("torch.autograd.backward", watch.around(torch.autograd.backward)):
        for _ in range(UPDATES):
            learner.update(trajectory, 0.0)
    return watch.seconds / (time.perf_counter() - began)


def waiting_and_publishing(seconds: float) -> tuple[float, float]:
    """Shares of the learner's time in a run on Ray."""
    flags = ["--runner", "ray", "--max-seconds", str(seconds)]
    flags += ["--evaluation.interval-seconds", "1e6", "--evaluation.final-trajectories", "64"]
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(Path("configs/experiments/digits_half.yaml"), flags)
        history = read_metrics(train(config, Path(folder) / "run", quiet=True).metrics)
        return float(history["learner/wait"][2][-1]), float(history["learner/publish"][2][-1])


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("learner_share", __doc__ or "")
    figures = {f"{name}_network_share": network_share(name) for name in CASES}
    figures["waiting_share"], figures["publishing_share"] = waiting_and_publishing(
        SHORT_SECONDS if benchmark.short else SECONDS
    )
    for key, value in figures.items():
        print(f"{key:24} {100 * value:.1f} %")
    if benchmark.json is not None:
        benchmark.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
