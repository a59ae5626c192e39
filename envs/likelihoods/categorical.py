"""A class: y says which of C classes x belongs to, by the probabilities of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.likelihoods.base import AutogradLikelihood

__all__ = ["CategoricalLikelihood"]


class CategoricalLikelihood(AutogradLikelihood):
    """p(y = c | x) = softmax(logits(x))_c for c = 1..C, y being one at c and zero elsewhere: normalised over all y."""

    def __init__(self, logits: nn.Module, classes: int) -> None:
        """`logits` maps x [N, *D] to [N, C], C = `classes`; they are log probabilities up to a constant."""
        super().__init__()
        if classes < 2:
            raise ValueError(f"there must be at least 2 classes, got {classes}")
        self.logits = logits
        self.measurement_shape = (classes,)

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`; -inf for a y that is not a one among zeros."""
        logits = self.logits(value)
        classes = self.measurement_shape[0]
        if logits.shape != (len(value), classes):
            raise ValueError(f"the classifier must give logits [{len(value)}, {classes}], got {tuple(logits.shape)}")
        chosen = measurement.to(logits)
        one = ((chosen == 0) | (chosen == 1)).all(1) & (chosen.sum(1) == 1)
        log_prob = (chosen * logits.log_softmax(1)).sum(1)
        return torch.where(one, log_prob, -torch.inf)

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`."""
        with torch.no_grad():
            probabilities = self.logits(value).softmax(1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        return nn.functional.one_hot(drawn, self.measurement_shape[0]).to(value)
