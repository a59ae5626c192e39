"""The pictures that suit a problem: images, points in the plane, or coordinates of a vector, and its classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envs.problem import InverseProblem
from evaluation.evaluation import Evaluation
from evaluation.figures.images import colour_last, image_picture
from evaluation.figures.marginals import class_picture, plane_picture, vector_picture
from evaluation.figures.picture import Picture

__all__ = ["problem_pictures"]


@torch.no_grad()
def problem_pictures(
    problem: InverseProblem,
    measurement_id: int,
    prior_samples: Tensor,
    samples: Tensor,
    evaluation: Evaluation,
    *,
    seed: int = 0,
) -> tuple[Picture, ...]:
    """Pictures of posterior `samples` [N, *D] beside `prior_samples` [N', *D] and, where known, the exact posterior."""
    prior, learned = _shown(problem, prior_samples), _shown(problem, samples)
    truth = None if problem.truth is None else _shown(problem, problem.truth[measurement_id][None])[0]
    exact = None
    if problem.exact:
        generator = torch.Generator().manual_seed(seed)
        exact = _shown(problem, problem.exact[measurement_id].sample(len(samples), generator))
    pictures = []
    if problem.image_shape is not None:
        shape = problem.image_shape
        measurement = None
        if problem.measurement_image is not None:
            measurement = _array(problem.measurement_image(problem.measurements[measurement_id].cpu()))
        pictures.append(
            image_picture(
                _pictures(prior, shape),
                _pictures(learned, shape),
                None if exact is None else _pictures(exact, shape),
                measurement if measurement is None or measurement.ndim == 2 else colour_last(measurement),
                None if truth is None else _pictures(truth, shape)[0],
            )
        )
    elif samples[0].numel() == 2:
        pictures.append(plane_picture(prior, learned, exact))
    else:
        pictures.append(vector_picture(prior, learned, exact, truth))
    probabilities = evaluation.class_probabilities
    if problem.classes is not None and probabilities is not None:
        known = evaluation.exact_class_probabilities
        label = None
        if problem.truth is not None:
            label = int(problem.classes.probabilities(problem.truth[measurement_id][None])[0].argmax())
        pictures.append(
            class_picture(
                problem.classes.names, np.array(probabilities), None if known is None else np.array(known), label
            )
        )
    return tuple(pictures)


def _pictures(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[N, H, W] or [N, H, W, 3] of x [N, *D] or [*D] that is shown in `shape`."""
    images = values.reshape(-1, *shape)
    return images if len(shape) == 2 else colour_last(images)


def _shown(problem: InverseProblem, value: Tensor) -> np.ndarray:
    """[N, *D] x = `value`, or the images [N, *image_shape] that it stands for."""
    return _array(value if problem.image is None else problem.image(value))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()
