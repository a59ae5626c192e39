"""Where the learner's time goes: in its network, waiting for batches, publishing weights.

Network: the share of an update's time in forward and backward passes of the posterior's network, by wrapping both, on
the problems of `learner_step`, and its rate beside that of a plain product of matrices. Waiting and publishing: what
the learner of a run on Ray measures itself, on digits-half as it is shipped; that needs two idle cores.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import parse, write_figures
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


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the seconds of an update go, and what it computes in them."""

    scoring: float
    """Forward passes without graph: the residuals of all transitions."""
    forward: float
    """Forward passes with graph."""
    backward: float
    """Backward passes; that of the loss by itself, which is small, included."""
    rest: float
    """All else: copies, the loss, the optimiser, the guard, averages."""
    rate: float
    """Matrix products of the network, floating-point operations a second of the update."""

    @property
    def network_share(self) -> float:
        """Of the time."""
        network = self.scoring + self.forward + self.backward
        return network / (network + self.rest)


def profile(name: str, *, subset: bool) -> Profile:
    """An update on the case `name` of `learner_step`: all transitions at once, or its subset of them in two passes."""
    case = CASES[name]
    problem = make_problem(case)
    trajectory = make_trajectory(problem, case)
    torch.manual_seed(0)
    posterior, scoring, forward, backward = FinetunePosterior(problem.prior), Stopwatch(), Stopwatch(), Stopwatch()
    config = LearnerConfig(objective="rtb", graph_bytes=2**40, steps_per_path=case.subset if subset else None)
    learner = Learner(problem, posterior, config)
    with FlopCounterMode(display=False) as counter:
        learner.update(trajectory, 0.0)
    network: Any = posterior.denoiser.network
    plain = network.forward

    def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the network takes
        with (forward if torch.is_grad_enabled() else scoring).running():
            return plain(*given, **named)

    network.forward = timed
    began = time.perf_counter()
    with patch("torch.autograd.backward", backward.around(torch.autograd.backward)):
        for _ in range(UPDATES):
            learner.update(trajectory, 0.0)
    total = (time.perf_counter() - began) / UPDATES
    parts = {"scoring": scoring, "forward": forward, "backward": backward}
    seconds = {key: watch.seconds / UPDATES for key, watch in parts.items()}
    return Profile(**seconds, rest=total - sum(seconds.values()), rate=counter.get_total_flops() / total)


def matrix_rate(size: int = 1024, rounds: int = 10) -> float:
    """Floating-point operations a second of one thread in the product of two float32 matrices, of the best round."""
    left, right, best = torch.randn(size, size), torch.randn(size, size), 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


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
    figures: dict[str, float] = {}
    peak = matrix_rate()
    for name in CASES:
        for subset in (False, True):
            measured, key = profile(name, subset=subset), f"{name}_subset" if subset else name
            figures[f"{key}_network_share"] = measured.network_share
            figures[f"{key}_share_of_matrix_rate"] = measured.rate / peak
    figures["waiting_share"], figures["publishing_share"] = waiting_and_publishing(
        SHORT_SECONDS if benchmark.short else SECONDS
    )
    for key, value in figures.items():
        print(f"{key:32} {100 * value:.1f} %")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
