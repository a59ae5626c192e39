"""Samples of a posterior, and what an evaluation found of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation import Evaluation
from evaluation.evaluation import Correction

__all__ = ["Draws", "Judgement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Samples of x given one measurement."""

    samples: torch.Tensor
    """[N, *D] as the posterior draws them."""
    log_weight: torch.Tensor
    """[N] float64, the log importance weights of their paths."""
    corrected: torch.Tensor | None = None
    """[M, *D] of the chain's posterior (`actors.resample_move`), where they were asked for and any path has weight."""
    ancestor: torch.Tensor | None = None
    """[M] int64, the number among `samples` of the one that each of these was made of."""
    accepted: float = 0.0
    """Share of the proposed suffixes that was accepted while they were moved."""

    def save(self, path: Path) -> None:
        """Writes them to an npz file without pickles."""
        arrays: dict[str, Any] = {"samples": self.samples.float().numpy(), "log_weight": self.log_weight.numpy()}
        if self.corrected is not None:
            assert self.ancestor is not None
            arrays |= {"corrected": self.corrected.float().numpy(), "ancestor": self.ancestor.numpy()}
        np.savez_compressed(path, **arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What an evaluation found."""

    evaluation: Evaluation
    """Of the samples as they are drawn."""
    draws: Draws
    """The samples."""
    correction: Correction | None = None
    """Of those that were corrected."""

    def as_metrics(self) -> dict[str, float]:
        """All its numbers."""
        return self.evaluation.as_metrics() | ({} if self.correction is None else self.correction.as_metrics())
