"""Whether a classifier can tell two samples apart (C2ST: Lopez-Paz and Oquab 2017, arXiv 1610.06545).

The accuracy of a network that is trained to, on draws that it has not seen: 0.5 if the distributions are the same, 1 if
they have nothing in common. As in Lueckmann et al. 2021 (arXiv 2101.04653): five folds, two hidden layers of ten units
a dimension, both samples scaled by mean and standard deviation of the first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["classifier_two_sample"]

FOLDS, UNITS = 5, 10  # units of a layer, per dimension


def classifier_two_sample(reference: Tensor, sample: Tensor, seed: int = 0) -> float:
    """Mean accuracy over the folds for two samples [N, *D] of equal size.

    Raises:
        ValueError: the samples are of different sizes, or a number is not finite.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # a second to import
    from sklearn.neural_network import MLPClassifier

    both = [value.double().flatten(1) for value in (reference, sample)]
    if both[0].shape != both[1].shape or len(both[0]) < 2 * FOLDS:
        raise ValueError(
            f"two samples of equal size, at least {2 * FOLDS}, are needed, got shapes {[tuple(v.shape) for v in both]}"
        )
    if not all(bool(torch.isfinite(value).all()) for value in both):
        raise ValueError("every number of both samples must be finite")
    mean, std = both[0].mean(0), both[0].std(0).clamp_min(1e-12)
    values = ((torch.cat(both) - mean) / std).numpy()
    labels = np.repeat([0, 1], len(reference))
    width = UNITS * values.shape[1]
    network = MLPClassifier((width, width), max_iter=1_000, early_stopping=True, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(network, values, labels, cv=folds, scoring="accuracy").mean())
