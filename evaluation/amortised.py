"""Judges one posterior at many measurements, from samples and log weights of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.problem import InverseProblem
from evaluation import bounds
from evaluation.distance import class_l1

__all__ = ["AmortisedEvaluation", "evaluate_amortised"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AmortisedEvaluation:
    """Numbers by measurement, [M] each; nan where they are not known."""

    elbo: NDArray[np.float64]
    """Lower bound of log Z, nats."""
    iw_log_partition: NDArray[np.float64]
    """Importance-weighted bound of log Z with all samples of the measurement, nats."""
    effective_sample_size: NDArray[np.float64]
    """Fraction of the samples."""
    exact_log_partition: NDArray[np.float64]
    """Exact log Z, nats."""
    class_l1: NDArray[np.float64]
    """Sum over classes of |learned - exact probability|, 0 to 2, from the samples as they come."""
    class_l1_floor: NDArray[np.float64]
    """The same of as many exact samples: what a perfect posterior would score."""

    @property
    def elbo_gap(self) -> float:
        """Mean over measurements of log Z - ELBO, nats."""
        return float((self.exact_log_partition - self.elbo).mean())

    @property
    def log_partition_error(self) -> float:
        """Median over measurements of |IW - log Z|, nats."""
        return float(np.median(np.abs(self.iw_log_partition - self.exact_log_partition)))

    def summary(self) -> dict[str, float]:
        """Means over measurements, and the median above."""
        return {
            "elbo_gap": self.elbo_gap,
            "log_partition_error": self.log_partition_error,
            "ess": float(self.effective_sample_size.mean()),
            "class_l1": float(self.class_l1.mean()),
            "class_l1_floor": float(self.class_l1_floor.mean()),
        }


@torch.no_grad()
def evaluate_amortised(
    problem: InverseProblem, samples: Tensor, log_weight: Tensor, *, seed: int = 0
) -> AmortisedEvaluation:
    """Judges `samples` [M, S, *D] of the posterior at each of the problem's measurements, M of them.

    `log_weight` [M, S] float64 are those of their paths; see `evaluation.bounds`.

    Raises:
        ValueError: samples and log weights do not match each other or the problem.
    """
    count, draws = len(problem.measurements), samples.shape[1] if samples.ndim > 1 else 0
    if samples.shape != (count, draws, *problem.event_shape) or log_weight.shape != (count, draws) or draws < 2:
        raise ValueError(
            f"expected samples [{count}, S, {', '.join(map(str, problem.event_shape))}] and log weights [{count}, S] "
            f"with S of at least 2, got {[*samples.shape]} and {[*log_weight.shape]}"
        )
    generator = torch.Generator().manual_seed(seed)
    classes = [_classes(problem, row, samples[row], generator) for row in range(count)]
    exact = [float(each.log_partition) for each in problem.exact] if problem.exact else [np.nan] * count
    return AmortisedEvaluation(
        elbo=np.array([bounds.elbo(each) for each in log_weight]),
        iw_log_partition=np.array([bounds.iw_log_partition(each) for each in log_weight]),
        effective_sample_size=np.array([bounds.effective_sample_size(each) for each in log_weight]),
        exact_log_partition=np.array(exact),
        class_l1=np.array([learned for learned, _ in classes]),
        class_l1_floor=np.array([floor for _, floor in classes]),
    )


def _classes(problem: InverseProblem, row: int, samples: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Distance of the samples' class probabilities to the exact ones, and that of as many exact samples."""
    exact = problem.class_probabilities(row)
    if problem.classes is None or exact is None:
        return np.nan, np.nan
    learned = problem.classes.probabilities(samples).double().mean(0).cpu()
    floor = np.nan
    if problem.exact:
        drawn = problem.exact[row].sample(len(samples), generator)
        floor = class_l1(problem.classes.probabilities(drawn).double().mean(0).cpu(), exact.cpu())
    return class_l1(learned, exact.cpu()), floor
