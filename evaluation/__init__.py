"""Evaluation judges samples: bounds on the evidence, distances to the truth, figures and the report."""

from evaluation.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
