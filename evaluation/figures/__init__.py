"""Figures: how a run went, and what the posterior looks like, each rendered as a `Picture`."""

from evaluation.figures.amortised import amortised_picture
from evaluation.figures.chain import discretisation_picture, schedule_picture
from evaluation.figures.draws import draws_picture
from evaluation.figures.history import History, bounds_picture, loss_picture
from evaluation.figures.images import image_picture
from evaluation.figures.marginals import class_picture, plane_picture, vector_picture
from evaluation.figures.picture import Picture
from evaluation.figures.problem import problem_pictures

__all__ = [
    "History",
    "Picture",
    "amortised_picture",
    "bounds_picture",
    "class_picture",
    "discretisation_picture",
    "draws_picture",
    "image_picture",
    "loss_picture",
    "plane_picture",
    "problem_pictures",
    "schedule_picture",
    "vector_picture",
]
