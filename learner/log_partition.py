"""log Z(y), learned: a number for each of the problem's measurements, or a network of y."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from learner.batch import PathBatch

__all__ = ["LogPartition", "LogPartitionForm"]

LogPartitionForm = Literal["table", "network"]

HIDDEN = 128  # units of the network's layers


class LogPartition(nn.Module):
    """Zero everywhere at the start."""

    def __init__(self, form: LogPartitionForm, measurements: int, measurement_shape: tuple[int, ...]) -> None:
        """For `measurements` of the problem, each [*Y]; a network is for any others too."""
        super().__init__()
        # One number that all share takes the level, which a network's own bias would be slow to reach.
        self.level = nn.Parameter(torch.zeros(1 if form == "network" else measurements, dtype=torch.float64))
        self.network: nn.Sequential | None = None
        if form == "network":
            inputs, head = torch.Size(measurement_shape).numel(), nn.Linear(HIDDEN, 1)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.network = nn.Sequential(
                nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), head
            )

    def known(self, batch: PathBatch) -> Tensor:
        """[B] bool, whether there is a log Z of the trajectory's measurement."""
        rows = batch.measurement_id >= 0
        return rows if self.network is None else torch.ones_like(rows)

    def forward(self, batch: PathBatch) -> Tensor:
        """[B] float64 log Z of each trajectory's measurement, nats."""
        if self.network is None:
            return self.level[batch.measurement_id]
        dtype = next(self.network.parameters()).dtype
        value: Tensor = self.network(batch.measurement.flatten(1).to(dtype))
        return self.level + value[:, 0].double()
